"""Subspace (after https://github.com/jsrdcht/SSL-Backdoor): how far an image lies from what can be said of its class.

The class c that an image x is given has ten texts, unit rows t_0 to t_9 of the text tower. Points go out from t_0, the
plain one, along the first principal directions d_j of the ten (those of 95 % of the variance, three at most):

    p_ij = t_0 + i step d_j,  i = 1 to 90,  kept where 0.85 < cos(p_ij, t_0) < 1
    score = mean over ``num_points`` of them of |x - p_ij|^2

NOTE: the directions' signs mean nothing; ours have a positive sum.
NOTE: points are few steps from t_0, so that the score is nearly 2 - 2 cos(x, t_0): minus the zero-shot confidence.
NOTE: the published threshold, the largest score of clean references, finds next to nothing (in that repository's own
regressions F1 is 0 next to an AUROC of 0.87): p-values take its place.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ssl_backdoor.detection.inputs import InputDetector

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_backdoor.detection.pool import Pool
    from ssl_backdoor.progress import OnProgress

VARIANTS = 9
NUM_STEPS = 90
MOST_DIRECTIONS = 3
VARIANCE = 0.95
LEAST_COSINE, MOST_COSINE = 0.85, 1.0


class SubspaceSpec(InputDetector):
    """Subspace: images far from the texts about the class that they are given."""

    kind: Literal["subspace"] = "subspace"
    needs_captions: ClassVar[bool] = True
    step: float = Field(default=1e-3, gt=0.0)
    num_points: int = Field(default=15, ge=1, le=MOST_DIRECTIONS * NUM_STEPS)

    @property
    def label(self) -> str:
        """For people."""
        return "Subspace"

    @property
    def card(self) -> dict[str, Any]:
        """See ``InputDetector``."""
        return {
            "input_range": "[0, 255], as stored",
            "normalisation": "the encoder's own; features of both towers brought to unit length",
            "divisor": "none",
            "texts": "a plain one and nine of open_clip's templates",
        }

    def score(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Tensor":
        """See ``InputDetector``.

        Raises:
            CheckpointError: the encoder has no text tower.
            SpecError: test images have no classes.
        """
        import torch
        import torch.nn.functional as F

        from ssl_backdoor.evaluate.zero_shot import prompt_templates
        from ssl_backdoor.seeds import torch_generator

        templates: list[Callable[[str], str]] = [lambda name: f"a photo of a {name}."]
        templates += prompt_templates("imagenet80")[:VARIANTS]
        texts = pool.class_texts(encoder, lambda name: [fill(name) for fill in templates])
        images = F.normalize(pool.features(encoder), dim=1)
        given = (images @ texts[:, 0].T).argmax(1)
        scores = torch.full((len(images),), float("nan"), dtype=torch.float64)
        for number, of_class in enumerate(texts):
            points = extrapolated(of_class.double(), self.step)
            drawn = torch.randperm(len(points), generator=torch_generator(seed, "points", number))[: self.num_points]
            here = given == number
            if here.any() and len(drawn):
                scores[here] = torch.cdist(images[here].double(), points[drawn]).square().mean(1)
        return scores


def extrapolated(texts: "Tensor", step: float) -> "Tensor":
    """The points of one class, float64 (P, D), from its texts (10, D), the plain one first; none where all agree."""
    import torch
    import torch.nn.functional as F

    _, values, directions = torch.linalg.svd(texts - texts.mean(0), full_matrices=False)
    variance = values.square()
    if variance.sum() <= 1e-12:
        return texts[:0]
    needed = int((variance.cumsum(0) / variance.sum() < VARIANCE).sum()) + 1
    kept = directions[: min(needed, MOST_DIRECTIONS)]
    kept = kept * torch.where(kept.sum(1, keepdim=True) < 0, -1.0, 1.0)
    steps = step * torch.arange(1, NUM_STEPS + 1, dtype=texts.dtype)
    points: Tensor = (texts[0] + steps[:, None, None] * kept).flatten(0, 1)
    cosines = F.normalize(points, dim=1) @ F.normalize(texts[0], dim=0)
    return points[(cosines > LEAST_COSINE) & (cosines < MOST_COSINE)]
