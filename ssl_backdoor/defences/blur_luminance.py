"""Blur and luminance (Satpathy et al.) as a defence, https://github.com/Aryan-Satpathy/Backdoor/tree/b9b0ba1.

Views are blurred with a probability of 0.5, by a Gaussian of 0.1 to 2 px, and then brought to their luminance, in all
three channels, with one of 0.2: a trigger of high frequencies or of colours is lost in many of them.

NOTE: both are operators that views have. Luminance comes on top of the grey that a training has: of two such steps one
acts with a probability of 1 - (1 - p)(1 - 0.2), and twice is as once. Blur too: a view is blurred once with that
probability, not twice with the product.
NOTE: the kernel has 3 x 3 px upstream; here it reaches four standard deviations.
NOTE: upstream multiplies luminance by 255, a slip of range; here it keeps its range.
"""

from typing import Literal

from ssl_backdoor.specs import Fraction, RobustTraining, TrainSpec
from ssl_backdoor.specs.defence import OF_TWO_CROPS


class BlurLuminanceSpec(RobustTraining):
    """Blurs more of the views, and takes the colours of more of them."""

    kind: Literal["blur_luminance"] = "blur_luminance"
    blur_p: Fraction = 0.5
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    luminance_p: Fraction = 0.2

    @property
    def label(self) -> str:
        """For people."""
        return "blur and luminance"

    def train(self, spec: TrainSpec) -> TrainSpec:
        """With other views."""
        views = spec.fit.views
        changed = {
            "blur_p": either(views.blur_p, self.blur_p),
            "blur_sigma_px": self.blur_sigma_px,
            "grey_p": either(views.grey_p, self.luminance_p),
        }
        fit = spec.fit.model_copy(update={"views": type(views).model_validate({**dict(views), **changed})})
        return TrainSpec.model_validate({**dict(spec), "fit": fit})

    def misfit(self, spec: TrainSpec) -> str:
        """Of other methods views are not blurred."""
        return "" if spec.method.has_two_crops else OF_TWO_CROPS


def either(one: float, other: float) -> float:
    """Probability of one or both of two independent events."""
    return one + other - one * other
