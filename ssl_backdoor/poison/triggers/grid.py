"""A seeded random RGB grid, enlarged: Saha et al. 2022 (https://arxiv.org/abs/2105.10123), section 4.1."""

from functools import lru_cache
from typing import Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field

from ssl_backdoor.poison.triggers.patch import PatchTrigger, UInt8Images
from ssl_backdoor.seeds import stream


class GridTriggerSpec(PatchTrigger):
    """A seeded random RGB grid, enlarged."""

    kind: Literal["grid"] = "grid"
    seed: int = Field(default=7, ge=0)
    cells: int = Field(default=3, ge=1, le=64)
    """Cells along one side of the grid."""
    style: Literal["binarised", "flat", "smooth"] = "binarised"
    """binarised: every channel 0 or 255, hard edges; flat: hard edges; smooth: bilinear."""

    @property
    def name(self) -> str:
        """For people, next to a target."""
        return str(self.seed)

    @property
    def label(self) -> str:
        """For people, by itself."""
        return f"trigger {self.seed}"

    @property
    def anonymous(self) -> Self:
        """The same whatever its pixels."""
        return self.unseen(0)

    def unseen(self, seed: int) -> Self:
        """The same patch with other pixels, of ``seed``: a trigger that no encoder was trained on."""
        return self.model_copy(update={"seed": seed})

    def render(self, size_px: int, source: bytes | None = None) -> UInt8Images:
        """The grid, uint8 (size_px, size_px, 3), read-only."""
        return _render(self.seed, self.cells, self.style, size_px)


@lru_cache(maxsize=32)
def _render(seed: int, cells: int, style: str, size_px: int) -> UInt8Images:
    colours = stream(seed, "trigger").integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    if style == "smooth":
        pixels = np.array(Image.fromarray(colours).resize((size_px, size_px), Image.Resampling.BILINEAR))
    else:
        if style == "binarised":
            colours = np.where(colours < 128, 0, 255).astype(np.uint8)
        cell_of = np.arange(size_px) * cells // size_px
        pixels = colours[cell_of][:, cell_of]
    pixels.flags.writeable = False
    return pixels
