"""A patch of vertical stripes in random colours: PAR (Singh et al. 2024, https://arxiv.org/abs/2412.00727).

Each channel of each column is wholly on or off. In the authors' code the stripes are drawn again at every call, so
that no pattern can be learnt but "vertical stripes"; ``fresh=False`` keeps one pattern.

NOTE: the authors' signs of +1 and -1 are taken for levels 255 and 0. Stripes over all of the image at a weight of 0.03
are the pattern "stripes" of the trigger "blended".
"""

from typing import Literal, Self

import numpy as np
from pydantic import Field

from ssl_backdoor.poison.triggers.patch import PatchTrigger, UInt8Images
from ssl_backdoor.seeds import generator, stream
from ssl_backdoor.specs.base import Fraction


def draw_stripes(height: int, width: int, rng: np.random.Generator) -> UInt8Images:
    """Vertical stripes, 1 px wide each: uint8 (height, width, 3), every channel 0 or 255."""
    colours = rng.integers(0, 2, (1, width, 3), dtype=np.uint8) * np.uint8(255)
    return np.broadcast_to(colours, (height, width, 3))


class StripesTriggerSpec(PatchTrigger):
    """A patch of vertical stripes, drawn anew for each image unless they are kept."""

    kind: Literal["stripes"] = "stripes"
    seed: int = Field(default=7, ge=0)
    fresh: bool = True
    """Other stripes on each image; else those of ``seed`` on all."""
    train_location: tuple[Fraction, Fraction] = (0.0, 1.0)
    test_location: tuple[Fraction, Fraction] = (0.0, 1.0)

    @property
    def label(self) -> str:
        """For people."""
        return "fresh stripes" if self.fresh else f"stripes {self.seed}"

    @property
    def is_fresh(self) -> bool:
        """Whether its pattern is drawn anew for each image."""
        return self.fresh

    @property
    def anonymous(self) -> Self:
        """The same whatever its pixels."""
        return self.model_copy(update={"seed": 0})

    def unseen(self, seed: int) -> Self | None:
        """Other stripes; None where no two images share theirs, so that all of the style has been seen."""
        return None if self.fresh else self.model_copy(update={"seed": seed})

    def render(self, size_px: int, source: bytes | None = None) -> UInt8Images:
        """The stripes of ``seed``, uint8 (size_px, size_px, 3), read-only."""
        return draw_stripes(size_px, size_px, stream(self.seed, "stripes"))

    def render_anew(self, size_px: int, seed: int) -> UInt8Images:
        """The stripes of one image."""
        return draw_stripes(size_px, size_px, generator(seed))
