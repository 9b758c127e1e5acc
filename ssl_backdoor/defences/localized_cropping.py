"""Localized cropping (Zhang et al. 2024, CorruptEncoder) as a defence; the boxes are drawn in ``data/localized.py``."""

from typing import Literal

from ssl_backdoor.specs import Fraction, RobustTraining, TrainSpec
from ssl_backdoor.specs.defence import OF_TWO_CROPS


class LocalizedCroppingSpec(RobustTraining):
    """Crops the second view of an image next to the first, so that what lies apart in it is not pulled together."""

    kind: Literal["localized_cropping"] = "localized_cropping"
    crop_margin: Fraction = 0.2
    """Share of the first crop's height and width, on each side, that the second may lie beyond."""

    @property
    def label(self) -> str:
        """For people."""
        return "localized cropping"

    def train(self, spec: TrainSpec) -> TrainSpec:
        """With ``crops``."""
        return TrainSpec.model_validate({**dict(spec), "crops": "localized", "crop_margin": self.crop_margin})

    def misfit(self, spec: TrainSpec) -> str:
        """Of methods without two crops."""
        return "" if spec.method.has_two_crops else OF_TWO_CROPS
