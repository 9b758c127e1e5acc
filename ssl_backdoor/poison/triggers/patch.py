"""Pasted patches: what grid and picture have in common.

Placement and pasting follow Saha et al. 2022 (https://arxiv.org/abs/2105.10123), poison-generation/generate_poison.py
of UMBCvision/SSL-Backdoor at 273ca47.
"""

import abc
from collections.abc import Sequence
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ssl_backdoor.errors import SpecError
from ssl_backdoor.seeds import generator, sub_seed
from ssl_backdoor.specs.base import Fraction
from ssl_backdoor.specs.trigger import Box, Frame, Stamped, Trigger

UInt8Images = npt.NDArray[np.uint8]
"""(..., height, width, channels)"""


class PatchTrigger(Trigger):
    """A square patch pasted at a random place. Abstract."""

    size_px: int = Field(default=0, ge=0)
    """Side in px of the stored frame when poisoning and of the evaluated frame when testing; 0 uses ``size_frac``."""
    size_frac: float = Field(default=0.0, ge=0.0, le=1.0)
    """Side as a fraction of the image's shorter side, in either frame."""
    opacity: float = Field(default=1.0, gt=0.0, le=1.0)
    """1 replaces the pixels, 0 would leave them."""
    train_location: tuple[Fraction, Fraction] = (0.25, 0.75)
    """The corner lies uniformly in [low * side, high * side - size] when poisoning."""
    test_location: tuple[Fraction, Fraction] = (0.10, 0.90)

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.size_px > 0) == (self.size_frac > 0):
            raise ValueError(
                f"give size_px or size_frac, not both or neither (found {self.size_px} and {self.size_frac})"
            )
        for name, (low, high) in (("train_location", self.train_location), ("test_location", self.test_location)):
            if low > high:
                raise ValueError(f"{name} needs low <= high, found ({low}, {high})")
        return self

    @abc.abstractmethod
    def render(self, size_px: int, source: bytes | None = None) -> UInt8Images:
        """The patch, read-only: uint8 (size_px, size_px, 3), or 4 channels where the last one is its alpha.

        Raises:
            DataError: ``source`` is not a readable image, or not the one whose digest the spec holds.
        """

    def render_anew(self, size_px: int, seed: int) -> UInt8Images:
        """The patch of one image, of a trigger that is fresh: as ``render``."""
        raise NotImplementedError

    def side_px(self, height: int, width: int) -> int:
        """Side in px on an image of ``height`` x ``width`` px, at least 1.

        Raises:
            SpecError: the patch is larger than the image.
        """
        side = self.size_px or max(1, round(self.size_frac * min(height, width)))
        if side > min(height, width):
            raise SpecError(
                f"the trigger of {side}x{side} px is larger than the image of {width}x{height} px "
                "(width x height): lower size_px, or give size_frac"
            )
        return side

    def apply(self, images: UInt8Images, seeds: Sequence[int], frame: Frame, source: bytes | None = None) -> Stamped:
        """See ``Trigger``."""
        height, width = images.shape[1:3]
        location = self.train_location if frame == "train" else self.test_location
        side_px = self.side_px(height, width)
        patch = self.render(side_px, source)
        boxes = tuple(_place_of(height, width, side_px, location, seed) for seed in seeds)
        stamped = images.copy()
        for image, box, seed in zip(stamped, boxes, seeds, strict=True):
            own = self.render_anew(side_px, sub_seed(seed, "pattern")) if self.is_fresh else patch
            paste(image, own, box, self.opacity)
        return Stamped(stamped, boxes)

    def side_frac(self, frame_px: int) -> float | None:
        """Side over that of a frame of ``frame_px``; None where neither is stated (0)."""
        return self.size_frac or (self.size_px / frame_px if frame_px else None)

    def shown(self, side_px: int, source: bytes | None = None) -> UInt8Images:
        """The patch itself."""
        return self.render(side_px, source)


def place(height: int, width: int, size_px: int, location: tuple[float, float], rng: np.random.Generator) -> Box:
    """A box whose corner is a uniform integer in [int(low * side), int(high * side - size_px)], per axis, x first.

    Where the upper bound falls below the lower one it is set to the lower one, as upstream.

    NOTE: the corner is then held inside [0, side - size_px]; upstream lets the patch stick out of a small image.
    """
    low, high = location

    def corner(side: int) -> int:
        lower = int(low * side)
        upper = max(lower, int(high * side - size_px))
        return min(max(int(rng.integers(lower, upper, endpoint=True)), 0), side - size_px)

    return Box(corner(width), corner(height), size_px, size_px)


@lru_cache(maxsize=2048)
def _place_of(height: int, width: int, size_px: int, location: tuple[float, float], seed: int) -> Box:
    """``place`` of one image: the same under each trigger of a size, so kept from one to the next."""
    return place(height, width, size_px, location, generator(seed))


def paste(image: UInt8Images, patch: UInt8Images, box: Box, opacity: float) -> None:
    """Put ``patch`` over ``box`` of ``image``, which changes; opacity 1 replaces the pixels, but for its alpha."""
    under = image[box.y : box.y + box.height, box.x : box.x + box.width]
    if patch.shape[2] == 4:
        share = opacity * (patch[..., 3:] / 255.0)
        under[:] = np.rint((1.0 - share) * under + share * patch[..., :3]).astype(np.uint8)
    else:
        under[:] = patch if opacity == 1.0 else np.rint((1.0 - opacity) * under + opacity * patch).astype(np.uint8)
