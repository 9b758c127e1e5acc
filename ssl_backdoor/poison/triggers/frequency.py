"""Two frequencies of the colour channels made stronger: CTRL, Li et al. 2023 (https://arxiv.org/abs/2210.07346).

RGB becomes YUV; in each window of 32 x 32 px 100 is added to two coefficients of the orthonormal two-dimensional cosine
transform of U and of V, and all is turned back. Every step is linear, so this adds one constant pattern: a coefficient
(k, l) of a window of N px contributes

    magnitude * c(k) c(l) cos(pi (2 row + 1) k / 2N) cos(pi (2 column + 1) l / 2N),   c(k) = sqrt(2 / N)

(c(0) = sqrt(1 / N)) to U and V, at most 6.25 levels here; both together give at most +14, -12 and +25 levels in red,
green and blue.

Written from the paper's description. NOTE: in a window of N px other than 32 a position k becomes k * N // 32 and the
magnitude N / 32 of its own, so that the strength in levels stays. NOTE: the pattern is repeated from the upper left
corner and cut off where windows do not fill the image; the authors' images are square.
"""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field

from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.triggers.whole import Floats, Layer, WholeTrigger
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs.trigger import Frame

_WINDOW_PX = 32
_RGB_OF_U, _RGB_OF_V = (0.0, -0.396, 2.029), (1.14, -0.581, 0.0)  # kornia's YUV, as in the paper
Position = tuple[Annotated[int, Field(ge=0, lt=_WINDOW_PX)], Annotated[int, Field(ge=0, lt=_WINDOW_PX)]]


class CtrlTriggerSpec(WholeTrigger):
    """Two high frequencies added to the colours of the whole image."""

    kind: Literal["ctrl"] = "ctrl"
    magnitude_levels: float = Field(default=100.0, gt=0.0, le=10_000.0)
    """Added to each coefficient of a window of 32 px, of levels 0 to 255."""
    window_px: int = Field(default=_WINDOW_PX, ge=1, le=4096)
    """Side of a window, in px of either frame."""
    window_frac: float = Field(default=0.0, ge=0.0, le=1.0)
    """Side of a window as a fraction of the image's shorter side; 0 uses ``window_px``. Where images are stored larger
    than they are evaluated only a fraction means the same frequencies in both."""
    positions: tuple[Position, ...] = Field(default=((15, 15), (31, 31)), min_length=1)
    """Row and column of each coefficient in a window of 32 px."""

    @property
    def label(self) -> str:
        """For people."""
        return f"CTRL {' '.join(f'{row}-{column}' for row, column in self.positions)}"

    @property
    def anonymous(self) -> Self:
        """The same whatever its frequencies."""
        return self.model_copy(update={"positions": ((15, 15), (31, 31))})

    def unseen(self, seed: int) -> Self:
        """As many other frequencies of the upper three quarters, as strong."""
        free = [(row, column) for row in range(8, 32) for column in range(8, 32) if (row, column) not in self.positions]
        chosen = stream(seed, "ctrl").choice(len(free), len(self.positions), replace=False)
        return self.model_copy(update={"positions": tuple(sorted(free[index] for index in chosen))})

    def layer(self, height: int, width: int, frame: Frame, rng: np.random.Generator) -> Layer:
        """See ``WholeTrigger``.

        Raises:
            SpecError: a window is larger than the image.
        """
        side = max(1, round(self.window_frac * min(height, width))) if self.window_frac else self.window_px
        if side > min(height, width):
            raise SpecError(
                f"the window of {side} px is larger than the image of {width}x{height} px (width x height): lower "
                "window_px, or give window_frac"
            )
        window = np.zeros((side, side))
        for row, column in self.positions:
            wave = np.outer(_cosine(row * side // _WINDOW_PX, side), _cosine(column * side // _WINDOW_PX, side))
            window += self.magnitude_levels * side / _WINDOW_PX * wave
        chroma = window[np.arange(height) % side][:, np.arange(width) % side]
        return Layer(1.0, chroma[..., None] * (np.array(_RGB_OF_U) + np.array(_RGB_OF_V)))


def _cosine(position: int, side: int) -> Floats:
    """One row of the orthonormal cosine transform's matrix: (side,)."""
    wave: Floats = np.cos(np.pi * (2 * np.arange(side) + 1) * position / (2 * side))
    wave *= np.sqrt((2 if position else 1) / side)
    return wave
