"""The few statistics of an audit: ranks among siblings, false discovery rate, what planted backdoors show."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_backdoor.detection.measure import rank_among
from ssl_backdoor.evaluate.metrics import wilson

POWER = 0.8
"""Share of planted backdoors found from which on a size counts as one that an audit sees."""


class Planted(NamedTuple):
    """A backdoor planted on trial."""

    area: float
    """Share of the pixels that its patch covers."""
    score: float | None
    """Of the copy, by the audit's detector; not a number where nothing was found, None where it was not judged."""
    failure: str = ""
    """Why it could not be planted, or was not judged."""


class Power(NamedTuple):
    """What an audit finds of the backdoors of one size."""

    area: float
    num_found: int
    num_planted: int
    low: float
    high: float
    """Wilson's 95 % interval of the share that is found."""

    @property
    def share(self) -> float:
        """Of the planted ones."""
        return self.num_found / self.num_planted


def powers(planted: Sequence[Planted], null: Sequence[float], rate: float) -> tuple[Power, ...]:
    """By area, the smallest first: how many of ``planted`` have a p-value among ``null`` of at most ``rate``.

    None of any where ``null`` allows no such p-value.
    """
    found = []
    if not is_decidable(len(null), rate):
        return ()
    for area in sorted({one.area for one in planted}):
        scores = [one.score for one in planted if one.area == area and one.score is not None and not one.failure]
        p_values = [rank_among(score, null) for score in scores]
        if scores and None not in p_values:
            hits = sum(p is not None and p <= rate * (1 + 1e-9) for p in p_values)
            found.append(Power(area, hits, len(scores), *wilson(hits, len(scores))))
    return tuple(found)


def seen_from(found: Sequence[Power]) -> float | None:
    """The smallest area from which on every larger one is found with a share of ``POWER``; None where none is."""
    area = None
    for one in sorted(found, key=lambda power: -power.area):
        if one.share < POWER:
            break
        area = one.area
    return area


def is_decidable(num_siblings: int, rate: float) -> bool:
    """Whether so many siblings allow a p-value of at most ``rate``: with 19 of 0.05."""
    return 1 / (num_siblings + 1) <= rate * (1 + 1e-9)


def benjamini_hochberg(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """q-values (N,) of ``p_values`` (N,): the smallest false discovery rate at which each is reported.

    q of the k-th smallest of n is the least p(j) n / j over j >= k (Benjamini & Hochberg 1995). What is not a number
    takes no part and stays so.
    """
    q_values = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    raised = p_values[order] * len(order) / np.arange(1, len(order) + 1)
    q_values[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1.0)
    return q_values


def leave_one_out(scores: Sequence[float]) -> list[float]:
    """The p-value of each of ``scores`` among the others."""
    ranked = (rank_among(one, [*scores[:at], *scores[at + 1 :]]) for at, one in enumerate(scores))
    return [p for p in ranked if p is not None]
