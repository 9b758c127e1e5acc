"""Filters that rank the training samples and leave the most suspicious ones out, up to a budget."""

import abc
import math
from fractions import Fraction as Exact
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ssl_backdoor.errors import SpecError
from ssl_backdoor.specs import Filter

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_backdoor.detection.pool import Pool, Verdicts
    from ssl_backdoor.progress import OnProgress


class RankingFilter(Filter):
    """Leaves out the ``budget`` of the samples that score highest, the trusted ones never. Abstract."""

    budget: float = Field(default=0.1, gt=0.0, lt=1.0)
    """At most this share of the training samples is left out."""
    trusted_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the training images, of each class, that somebody looked at and found clean. Half of them the filter may
    use; the others it never sees, and p-values compare with their scores."""

    @abc.abstractmethod
    def score(self, pool: "Pool", encoder: "Path", seed: int, on_progress: "OnProgress") -> "Tensor":
        """Of each sample of ``pool``: float (N,), larger is more suspicious, not a number where it cannot say.

        Args and errors as ``Filter.judge``; ``encoder`` is an empty path where none is needed.
        """

    def is_suspicious(self, scores: "Tensor", seed: int) -> "Tensor":
        """Of ``scores`` float64 (N,) those that may be left out, bool (N,); the others are kept whatever the budget."""
        return ~scores.isnan()

    def judge(self, pool: "Pool", encoder: "Path | None", seed: int, on_progress: "OnProgress") -> "Verdicts":
        """As ``Filter.judge``.

        Raises:
            SpecError: an encoder is needed, and there is none.
        """
        from ssl_backdoor.detection.pool import Verdicts

        if encoder is None and self.needs_encoder:
            raise SpecError(f"the filter {self.kind} judges samples by an encoder that was trained on them, found none")
        scores = self.score(pool, encoder or Path(), seed, on_progress).double().cpu()
        may_go = self.is_suspicious(scores, seed).clone()
        may_go[pool.vouched] = False
        return Verdicts(scores, left_out(scores, may_go, self.budget))

    def most_left_out(self, num_samples: int) -> int:
        """The budget in samples."""
        return share_of(self.budget, num_samples)


def share_of(fraction: float, number: int) -> int:
    """``fraction`` of ``number``, rounded down, as the fraction is written: 0.29 of 100 is 29."""
    return math.floor(Exact(repr(fraction)) * number)


def left_out(scores: "Tensor", may_go: "Tensor", budget: float) -> "Tensor":
    """Which samples go: bool (N,), the ``share_of(budget, N)`` highest ``scores`` (N,) among those that may.

    Of equal scores those go that come first: a pool's order is random and tells nothing.
    """
    import torch

    order = scores.masked_fill(~may_go, -math.inf).argsort(descending=True, stable=True)
    goes = torch.zeros(len(scores), dtype=torch.bool)
    goes[order[: share_of(budget, len(scores))]] = True
    return goes & may_go
