"""A pattern blended into the whole image: Chen et al. 2017 (https://arxiv.org/abs/1712.05526).

    x <- (1 - opacity) * x + opacity * pattern

One fixed picture under 0.2 is the usual trigger. CleanCLIP (https://arxiv.org/abs/2303.03323) and PAR
(https://arxiv.org/abs/2412.00727) call noise "blended" that is drawn anew for each image, which is another, weaker
trigger: ``pattern="noise", fresh=True``. PAR's blended stripes are ``pattern="stripes", fresh=True, opacity=0.03``.

NOTE: the published picture is a cartoon cat; here it is a smooth seeded grid. A picture of one's own over the whole
image is the trigger "image" with size_frac 1 and an opacity of 0.2.
"""

from typing import Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field

from ssl_backdoor.poison.triggers.stripes import draw_stripes
from ssl_backdoor.poison.triggers.whole import Layer, WholeTrigger
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs.trigger import Frame


class BlendedTriggerSpec(WholeTrigger):
    """A pattern blended into the whole image."""

    kind: Literal["blended"] = "blended"
    seed: int = Field(default=7, ge=0)
    pattern: Literal["grid", "noise", "stripes"] = "grid"
    """grid: random colours, smoothly enlarged to the image; noise: uniform, each channel of each pixel by itself;
    stripes: vertical, 1 px wide."""
    cells: int = Field(default=8, ge=1, le=64)
    """Of a grid, along one side."""
    fresh: bool = False
    """Another pattern on each image; else that of ``seed`` on all."""
    opacity: float = Field(default=0.2, gt=0.0, le=1.0)

    @property
    def label(self) -> str:
        """For people."""
        return f"fresh blended {self.pattern}" if self.fresh else f"blended {self.pattern} {self.seed}"

    @property
    def is_fresh(self) -> bool:
        """Whether its pattern is drawn anew for each image."""
        return self.fresh

    @property
    def anonymous(self) -> Self:
        """The same whatever its pixels."""
        return self.model_copy(update={"seed": 0})

    def unseen(self, seed: int) -> Self | None:
        """Another pattern; None where no two images share theirs, so that all of the style has been seen."""
        return None if self.fresh else self.model_copy(update={"seed": seed})

    def layer(self, height: int, width: int, frame: Frame, rng: np.random.Generator) -> Layer:
        """See ``WholeTrigger``."""
        if not self.fresh:
            rng = stream(self.seed, "blended")
        if self.pattern == "grid":
            colours = rng.integers(0, 256, (self.cells, self.cells, 3), dtype=np.uint8)
            pattern = np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.BILINEAR))
        elif self.pattern == "noise":
            pattern = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        else:
            pattern = draw_stripes(height, width, rng)
        return Layer(1 - self.opacity, self.opacity * pattern)
