"""How alike a backbone finds pairs of images: the histogram behind the z-score (Carlini & Terzis 2022).

Exact over all distinct pairs, which are formed a block at a time.
"""

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.tables import SIMILARITY

BINS = 100
SAME_LABEL = "clean_same_label"
"""The condition under which the clean pairs stand that are given one label."""
_BLOCK = 512


def histogram(features: Tensor, predicted: Tensor | None = None) -> Tensor:
    """Pairs of distinct rows of ``features`` (N, D) by cosine: counts int64 (BINS,), equal bins over [-1, 1].

    A bin holds [low, high); the last one holds 1 as well. With the labels ``predicted`` (N,) those pairs alone whose
    labels are equal.
    """
    if predicted is not None:
        labels = set(predicted.tolist())
        return sum((histogram(features[predicted == label]) for label in labels), torch.zeros(BINS).long())
    unit = F.normalize(features.double(), dim=1, eps=1e-12)
    counts = torch.zeros(BINS, dtype=torch.int64)
    for start in range(0, len(unit), _BLOCK):
        rows = unit[start : start + _BLOCK]
        square = rows @ rows.T
        upper = torch.triu_indices(len(rows), len(rows), 1)
        for cosine in (square[upper[0], upper[1]], rows @ unit[start + _BLOCK :].T):
            counts += torch.histc(cosine.clamp_(-1.0, 1.0), BINS, -1.0, 1.0).long().cpu()
    return counts


def similarity_table(values: dict[str, Tensor], device: str, predicted: Tensor | None = None) -> pa.Table:
    """The histogram of each condition's features, SIMILARITY rows in the order of ``values`` and of the bins.

    With the labels ``predicted`` (N,) of the clean images, last that of the clean pairs of one label.
    """
    counts = {condition: histogram(features.to(device)) for condition, features in values.items()}
    if predicted is not None:
        counts[SAME_LABEL] = histogram(values["clean"].to(device), predicted.to(device))
    edges = torch.linspace(-1.0, 1.0, BINS + 1, dtype=torch.float64).numpy()
    tables = [
        pa.table(
            [
                pa.repeat(condition, BINS),
                pa.array(edges[:-1]),
                pa.array(edges[1:]),
                pa.array(found.numpy()),
            ],
            schema=SIMILARITY,
        )
        for condition, found in counts.items()
    ]
    return pa.concat_tables(tables)
