"""How alike a backbone finds pairs of images: the histogram behind the z-score (Carlini & Terzis 2022).

Exact over all distinct pairs, which are formed a block at a time.
"""

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.tables import SIMILARITY

BINS = 100
_BLOCK = 512


def histogram(features: Tensor) -> Tensor:
    """Pairs of distinct rows of ``features`` (N, D) by cosine: counts int64 (BINS,), equal bins over [-1, 1].

    A bin holds [low, high); the last one holds 1 as well.
    """
    unit = F.normalize(features.double(), dim=1, eps=1e-12)
    counts = torch.zeros(BINS, dtype=torch.int64)
    for start in range(0, len(unit), _BLOCK):
        rows = unit[start : start + _BLOCK]
        square = rows @ rows.T
        upper = torch.triu_indices(len(rows), len(rows), 1)
        for cosine in (square[upper[0], upper[1]], rows @ unit[start + _BLOCK :].T):
            counts += torch.histc(cosine.clamp_(-1.0, 1.0), BINS, -1.0, 1.0).long().cpu()
    return counts


def similarity_table(values: dict[str, Tensor], device: str) -> pa.Table:
    """The histogram of each condition's features, SIMILARITY rows in the order of ``values`` and of the bins."""
    edges = torch.linspace(-1.0, 1.0, BINS + 1, dtype=torch.float64).numpy()
    tables = [
        pa.table(
            [
                pa.repeat(condition, BINS),
                pa.array(edges[:-1]),
                pa.array(edges[1:]),
                pa.array(histogram(features.to(device)).numpy()),
            ],
            schema=SIMILARITY,
        )
        for condition, features in values.items()
    ]
    return pa.concat_tables(tables)
