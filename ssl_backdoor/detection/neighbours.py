"""Nearest neighbours and k-means by blocks of matrix products: exact, deterministic, in memory that does not grow."""

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK_BYTES = 2**26
_SPARE = 8  # candidates beyond k, whose distances are computed again without cancellation


class Neighbours(NamedTuple):
    """Of each row its nearest others, nearest first; of equally near ones those of lower index first."""

    distances: Tensor
    """float64 (N, k), Euclidean."""
    rows: Tensor
    """int64 (N, k)."""


def nearest_others(features: Tensor, k: int) -> Neighbours:
    """The ``k`` nearest rows of ``features`` (N, D) to each, itself left out; 1 <= k < N.

    Candidates come of |a - b|^2 = |a|^2 + |b|^2 - 2ab in the features' precision, a block of rows at a time; the
    distances of the k + 8 nearest are then computed from their differences, so that near ones do not cancel out.
    """
    centred = features - features.mean(0)
    squares = centred.square().sum(1)
    most = min(len(features) - 1, k + _SPARE)
    parts = []
    for rows in torch.split(torch.arange(len(features)), _rows_at_once(len(features))):
        squared = torch.addmm(squares.expand(len(rows), -1), centred[rows], centred.T, alpha=-2)
        squared[torch.arange(len(rows)), rows] = torch.inf
        found = squared.topk(most, largest=False).indices.sort(1).values
        # Of the candidates a few rows at a time: their differences are (rows, candidates, D).
        exact = torch.cat(
            [
                (features[some, None].double() - features[near].double()).square().sum(2).sqrt()
                for some, near in zip(torch.split(rows, 64), torch.split(found, 64), strict=True)
            ]
        )
        distances, order = exact.sort(stable=True, dim=1)
        parts.append((distances[:, :k], found.gather(1, order)[:, :k]))
    distances, indices = (torch.cat(part) for part in zip(*parts, strict=True))
    return Neighbours(distances, indices)


class Clusters(NamedTuple):
    """A partition of N rows into K, each nearest to its own centre."""

    centres: Tensor
    """float (K, D): the mean of the members, not normalised."""
    labels: Tensor
    """int64 (N,)."""


def k_means(features: Tensor, count: int, generator: torch.Generator, iterations: int = 20) -> Clusters:
    """Lloyd's algorithm on ``features`` (N, D) from ``count`` <= N distinct rows drawn at random.

    A centre that loses all members moves to the row that is farthest from its own centre.
    """
    centres = features[torch.randperm(len(features), generator=generator)[:count]]
    labels, _ = nearest_centre(features, centres)
    for _ in range(iterations):
        sums = torch.zeros_like(centres).index_add_(0, labels, features)
        sizes = labels.bincount(minlength=count)
        centres = sums / sizes.clamp(min=1)[:, None]
        labels, distances = nearest_centre(features, centres)
        if len(empty := (sizes == 0).nonzero()[:, 0]):
            centres[empty] = features[distances.argsort(descending=True, stable=True)[: len(empty)]]
            labels, _ = nearest_centre(features, centres)
    return Clusters(centres, labels)


def nearest_centre(features: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of ``features`` (N, D) the nearest of ``centres`` (K, D), int64 (N,), and its squared distance (N,).

    Of equally near ones that of lower index.
    """
    squares, labels, distances = centres.square().sum(1), [], []
    for rows in torch.split(features, _rows_at_once(len(centres))):
        best, which = torch.addmm(squares.expand(len(rows), -1), rows, centres.T, alpha=-2).min(1)
        labels.append(which)
        distances.append(best + rows.square().sum(1))
    return torch.cat(labels), torch.cat(distances).clamp(min=0)


def _rows_at_once(width: int) -> int:
    return max(64, _BLOCK_BYTES // (4 * width))
