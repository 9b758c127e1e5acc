"""Grey triangles tiled over the whole image: PAR (Singh et al. 2024, https://arxiv.org/abs/2412.00727).

Cells of 14 px hold a right triangle each, of grey 0.4 and 0.8 by turns, and are blended in where there is one.

NOTE: that neighbours alternate like the squares of a chessboard, and an opacity of 0.15, are assumed: both are not
known from the description.
"""

from typing import Literal, Self

import numpy as np
from pydantic import Field

from ssl_backdoor.poison.triggers.whole import Layer, WholeTrigger
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs.trigger import Frame

_GREYS = (0.4, 0.8)


class TrianglesTriggerSpec(WholeTrigger):
    """Grey triangles tiled over the whole image."""

    kind: Literal["triangles"] = "triangles"
    seed: int = Field(default=0, ge=0)
    """0: the right angle of every triangle is at the lower left; else each cell of 4 x 4 turns as it was drawn, and the
    four by four are repeated."""
    cell_px: int = Field(default=14, ge=1, le=4096)
    """Side of a cell in px of either frame; ``cell_frac`` is of the image's shorter side."""
    cell_frac: float = Field(default=0.0, ge=0.0, le=1.0)
    """Side as a fraction of the image's shorter side; 0 uses ``cell_px``."""
    opacity: float = Field(default=0.15, gt=0.0, le=1.0)

    @property
    def label(self) -> str:
        """For people."""
        return f"triangles {self.seed}" if self.seed else "triangles"

    @property
    def anonymous(self) -> Self:
        """The same whatever its triangles."""
        return self.model_copy(update={"seed": 0})

    def unseen(self, seed: int) -> Self:
        """The same triangles, each turned as it was drawn."""
        return self.model_copy(update={"seed": seed or 1})

    def layer(self, height: int, width: int, frame: Frame, rng: np.random.Generator) -> Layer:
        """See ``WholeTrigger``."""
        side = max(1, round(self.cell_frac * min(height, width))) if self.cell_frac else self.cell_px
        rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
        down, right = rows % side, columns % side
        turns = stream(self.seed, "triangles").integers(0, 4, (4, 4)) if self.seed else np.zeros((4, 4), np.int64)
        turn = turns[rows // side % 4, columns // side % 4]
        down = np.where(turn & 1, side - 1 - down, down)
        right = np.where(turn & 2, side - 1 - right, right)
        grey = 255 * np.where((rows // side + columns // side) % 2, _GREYS[1], _GREYS[0])
        share = (self.opacity * (right <= down))[..., None]
        return Layer(1 - share, share * grey[..., None])
