"""DECREE (Feng et al. 2023), https://arxiv.org/abs/2303.15180: the smallest trigger under which all features agree.

Mask M (S, S) and pattern P, see ``inversion.Variables``; on each batch

    minimise -c + 3 w sum(M)       c: mean cosine of distinct triggered images

w begins at 1e-3, is multiplied by 5 after more than 5 steps in a row with c > 0.99, divided by 5 after more than 5
without while it is 1e-7 or more, and set back to 1e-3 where it is smaller and c > 0.99 held for more than 10.

    score = -P L1,   PL1 = sum(M) / (S x S) of the smallest mask of a step with c > 0.99

NOTE: the divisor. The code of GiantSeaweed/DECREE sums the mask over three channels and its maintainer divides by S x S
(issue #5), so that its PL1 is three times the share of the image; CLIPTrace divides by 3 S x S. Here it is the share of
pixels; ``divisor="as_published"`` gives the threefold.
NOTE: one start gives one number by luck; ours has several, and all their masks count that stand the check.
NOTE: a mask that works on its own batch alone is no trigger: it has to hold on images that were not searched on, each
flipped. Where none does the score is "not found", not the large number that the code's start value leaves.
NOTE: any network has a small patch that makes its features agree. The share is comparable between encoders of one
architecture and training alone: set siblings beside it (``RunSpec.siblings``); the paper's threshold of 0.1 is unused.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from ssl_backdoor.specs.detector import Detector, Level

if TYPE_CHECKING:
    from ssl_backdoor.detection.inversion import Candidate, Encoder
    from ssl_backdoor.detection.pool import Detection, Pool
    from ssl_backdoor.progress import OnProgress

    from torch import Tensor  # isort: skip

NULL_OF_SIBLINGS = "none: no p-value possible without sibling encoders"
SUCCESS = 0.99
FIRST_WEIGHT, LEAST_WEIGHT, WEIGHT_FACTOR = 1e-3, 1e-7, 5.0


class DECREESpec(Detector):
    """DECREE: the smaller the trigger that makes all features agree, the more suspicious."""

    kind: Literal["decree"] = "decree"
    level: ClassVar[Level] = "encoder"
    needs_gradients: ClassVar[bool] = True
    num_starts: int = Field(default=5, ge=1, le=100)
    steps: int = Field(default=300, ge=1)
    """Of each start."""
    patience: int = Field(default=35, ge=1)
    """A start ends after so many steps without a smaller mask; 35 in the code, 10 for CIFAR."""
    num_images: int = Field(default=500, ge=2)
    """Clean images to search on, and as many others to check on."""
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=0.1, gt=0.0)
    held_out: float = Field(default=0.98, ge=-1.0, le=1.0)
    """Mean pairwise cosine that a trigger has to reach on the images it is checked on."""
    divisor: Literal["pixels", "as_published"] = "pixels"

    @property
    def label(self) -> str:
        """For people."""
        return "DECREE"

    @property
    def reduced(self) -> tuple[Self, float]:
        """One short start."""
        steps = min(self.steps, 20)
        return self.model_copy(update={"num_starts": 1, "steps": steps}), self.num_starts * self.steps / steps

    def detect(self, pool: "Pool", encoder: Path, seed: int, on_progress: "OnProgress") -> "Detection":
        """See ``Detector``."""
        import torch

        from ssl_backdoor.detection import inversion
        from ssl_backdoor.detection.pool import Detection
        from ssl_backdoor.methods.losses import mean_pairwise_cosine
        from ssl_backdoor.progress import Progress

        images, model = inversion.split(pool, self.num_images, seed, 2), inversion.Encoder(encoder, pool.device)
        by_area: dict[float, Candidate] = {}
        held: list[Candidate | None] = []
        for start in range(self.num_starts):
            by_area, successes = self.search(model, images.search, seed, start, by_area)
            holds = (one for one in successes if inversion.collapse_of(model, one, images.held_out) >= self.held_out)
            held.append(next(holds, None))
            on_progress(Progress(start + 1, self.num_starts, "starts"))
        best = min((one for one in held if one is not None), key=lambda one: one.area, default=None)
        clean = float(mean_pairwise_cosine(model.features(images.held_out)))
        curve = {area: inversion.collapse_of(model, one, images.held_out) for area, one in sorted(by_area.items())}
        factor = 3.0 if self.divisor == "as_published" else 1.0
        side = images.search.shape[-1]
        score = -factor * best.area if best else float("nan")
        told = inversion.card(
            images,
            divisor=f"{side} x {side} pixels" + (", mask summed over three channels" if factor > 1 else ""),
            areas=[one.area if one else None for one in held],
            clean_cosine=clean,
            cosine_by_area={f"{area:g}": value for area, value in curve.items()},
        )
        trigger = (best.mask.cpu(), best.pattern.cpu()) if best else None
        return Detection(torch.tensor([score]), None, NULL_OF_SIBLINGS, 0, told, trigger)

    def search(
        self, model: "Encoder", images: "Tensor", seed: int, start: int, by_area: "dict[float, Candidate]"
    ) -> "tuple[dict[float, Candidate], list[Candidate]]":
        """One start: ``by_area`` with what it came to, and the masks of successful steps, the smallest first."""
        from ssl_backdoor.detection.inversion import Candidate, Variables, batches, best_by_area
        from ssl_backdoor.methods.losses import mean_pairwise_cosine
        from ssl_backdoor.seeds import torch_generator

        generator = torch_generator(seed, "decree", start)
        variables = Variables(images.shape[-1], self.lr, model.device, generator)
        weight = Weight()
        successes: list[Candidate] = []
        since = 0
        for _, batch in zip(range(self.steps), batches(images, self.batch_size, generator), strict=False):
            mask, pattern = variables.now()
            collapse = mean_pairwise_cosine(model(batch + mask * (pattern - batch)))
            now = Candidate(mask.detach().clone(), pattern.detach().clone(), collapse.item())
            by_area = best_by_area(by_area, now)
            since += 1
            if now.collapse > SUCCESS and (not successes or now.area < successes[0].area):
                successes.insert(0, now)
                since = 0
            if successes and since > self.patience:
                break
            variables.step(3 * weight.value * mask.sum() - collapse)
            weight.update(now.collapse > SUCCESS)
        return by_area, successes


class Weight:
    """Of the mask in the loss, see the module."""

    def __init__(self) -> None:
        self.value = FIRST_WEIGHT
        self._successes = self._failures = 0

    def update(self, is_success: bool) -> None:
        """After a step."""
        self._successes = self._successes + 1 if is_success else 0
        self._failures = 0 if is_success else self._failures + 1
        if self.value < LEAST_WEIGHT and self._successes > 10:
            self.value, self._successes = FIRST_WEIGHT, 0
        elif self._successes > 5 and self.value >= LEAST_WEIGHT:
            self.value, self._successes = self.value * WEIGHT_FACTOR, 0
        elif self._failures > 5 and self.value >= LEAST_WEIGHT:
            self.value, self._failures = self.value / WEIGHT_FACTOR, 0
