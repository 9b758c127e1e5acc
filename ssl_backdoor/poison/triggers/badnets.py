"""A fixed black and white patch: BadNets (Gu et al. 2017, https://arxiv.org/abs/1708.06733) as CLIP's detectors use it.

16 x 16 px on images of 224, black with white at every second row and column, at a random place from 16 px on.

NOTE: "every second row and column" is read as the pixels whose row and column are both even.
NOTE: the corner's upper bound, 208 px of 224, can be drawn here, which is one place more on either axis.
"""

from typing import Literal, Self

import numpy as np
from pydantic import Field

from ssl_backdoor.poison.triggers.patch import PatchTrigger, UInt8Images
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs.base import Fraction


class BadNetsTriggerSpec(PatchTrigger):
    """A fixed black patch with white pixels."""

    kind: Literal["badnets"] = "badnets"
    seed: int = Field(default=0, ge=0)
    """0: white at every second row and column; else each pixel is white with a probability of a quarter."""
    train_location: tuple[Fraction, Fraction] = (1 / 14, 1.0)
    test_location: tuple[Fraction, Fraction] = (1 / 14, 1.0)

    @property
    def label(self) -> str:
        """For people."""
        return f"BadNets patch {self.seed}" if self.seed else "BadNets patch"

    @property
    def anonymous(self) -> Self:
        """The same whatever its pixels."""
        return self.model_copy(update={"seed": 0})

    def unseen(self, seed: int) -> Self:
        """As many white pixels on average, elsewhere."""
        return self.model_copy(update={"seed": seed or 1})

    def render(self, size_px: int, source: bytes | None = None) -> UInt8Images:
        """The patch, uint8 (size_px, size_px, 3)."""
        if self.seed:
            white = stream(self.seed, "badnets").random((size_px, size_px)) < 0.25
        else:
            even = np.arange(size_px) % 2 == 0
            white = even[:, None] & even
        return np.repeat(white[..., None] * np.uint8(255), 3, axis=2)
