"""A smooth warp of the whole image: WaNet, Nguyen & Tran 2021 (https://arxiv.org/abs/2102.10369).

A control grid of k x k random vectors, divided by their mean absolute value, is enlarged bicubically to the image; each
pixel is read, bilinearly, from where its vector points: at the place p of [-1, 1] from
clip(p + strength * field / side).

NOTE: the field of an image that is no square is divided by the height of rows and the width of columns.
NOTE: CleanCLIP's "warped" trigger has a control grid as large as the image, which is noise and no smooth warp.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from pydantic import Field

from ssl_backdoor.poison.triggers.patch import UInt8Images
from ssl_backdoor.poison.triggers.whole import Floats
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs.trigger import Frame, Stamped, Trigger


class WaNetTriggerSpec(Trigger):
    """A smooth warp of the whole image."""

    kind: Literal["wanet"] = "wanet"
    seed: int = Field(default=7, ge=0)
    grid: int = Field(default=4, ge=2, le=512)
    """Control points along one side."""
    strength: float = Field(default=0.5, gt=0.0, le=100.0)
    """A vector of mean size moves half of this many px."""

    @property
    def label(self) -> str:
        """For people."""
        return f"warp {self.seed}"

    @property
    def anonymous(self) -> Self:
        """The same whatever its vectors."""
        return self.model_copy(update={"seed": 0})

    def unseen(self, seed: int) -> Self:
        """Another warp, as strong and as smooth."""
        return self.model_copy(update={"seed": seed})

    def apply(self, images: UInt8Images, seeds: Sequence[int], frame: Frame, source: bytes | None = None) -> Stamped:
        """See ``Trigger``; levels are rounded to the nearest."""
        import torch
        import torch.nn.functional as F

        places = torch.from_numpy(_places(self, *images.shape[1:3]))[None]
        warped = np.empty_like(images)
        for index, image in enumerate(images):
            pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].double()
            moved = F.grid_sample(pixels, places, mode="bilinear", align_corners=True)
            warped[index] = moved[0].permute(1, 2, 0).round().clamp(0, 255).numpy()
        return Stamped(warped, None)

    def shown(self, side_px: int, source: bytes | None = None) -> UInt8Images:
        """For people: a chessboard of 4 px under the warp, which an even grey would not show."""
        cells = np.arange(side_px) // 4 % 2
        board = np.repeat(np.where(cells[:, None] ^ cells, 224, 32).astype(np.uint8)[..., None], 3, axis=2)
        return self.apply_one(board, 0, "test", source)[0]


@lru_cache(maxsize=16)
def _places(trigger: WaNetTriggerSpec, height: int, width: int) -> Floats:
    """Where each pixel is read from, in [-1, 1] along x and y: float64 (height, width, 2)."""
    import torch
    import torch.nn.functional as F

    control = stream(trigger.seed, "wanet").uniform(-1, 1, (trigger.grid, trigger.grid, 2))
    control /= np.abs(control).mean()
    spread = torch.from_numpy(control).permute(2, 0, 1)[None]
    field = F.interpolate(spread, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0).numpy()
    still = np.stack(np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height)), axis=-1)
    places: Floats = np.clip(still + trigger.strength * field / np.array([width, height]), -1, 1)
    return places
