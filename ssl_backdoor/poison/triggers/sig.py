"""A horizontal sine added to every row: SIG, Barni et al. 2019 (https://arxiv.org/abs/1902.11237).

    x[row, column] <- x[row, column] + amplitude * sin(2 pi cycles * column / width)

Units: the amplitude is in levels of 0 to 255. The paper has 20 and 6 cycles; CleanCLIP's code, which multiplies 60 by
0.2, has 12.
"""

from typing import Literal, Self

import numpy as np
from pydantic import Field

from ssl_backdoor.poison.triggers.whole import Layer, WholeTrigger
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs.trigger import Frame

_UNSEEN_CYCLES = (2, 12)


class SigTriggerSpec(WholeTrigger):
    """A sine over the columns, added to the whole image."""

    kind: Literal["sig"] = "sig"
    amplitude_levels: float = Field(default=20.0, gt=0.0, le=255.0)
    """Of 0 to 255."""
    cycles: float = Field(default=6.0, gt=0.0, le=1000.0)
    """Over the width of the image."""
    phase_turns: float = Field(default=0.0, ge=0.0, lt=1.0)

    @property
    def label(self) -> str:
        """For people."""
        return f"SIG, {self.cycles:g} cycles"

    @property
    def anonymous(self) -> Self:
        """The same whatever its sine."""
        return self.model_copy(update={"cycles": 6.0, "phase_turns": 0.0})

    def unseen(self, seed: int) -> Self:
        """As strong a sine of 2 to 12 cycles, but not of its own number, in any phase."""
        rng = stream(seed, "sig")
        cycles = [one for one in range(_UNSEEN_CYCLES[0], _UNSEEN_CYCLES[1] + 1) if one != self.cycles]
        return self.model_copy(update={"cycles": float(rng.choice(cycles)), "phase_turns": float(rng.random())})

    def layer(self, height: int, width: int, frame: Frame, rng: np.random.Generator) -> Layer:
        """See ``WholeTrigger``."""
        turns = self.cycles * np.arange(width) / width + self.phase_turns
        return Layer(1.0, self.amplitude_levels * np.sin(2 * np.pi * turns)[None, :, None])
