"""The permutations that Jigsaw tells apart: Noroozi & Favaro 2016, https://arxiv.org/abs/1603.09246, section 4.2."""

import itertools
import math

import numpy as np
from numpy.typing import NDArray

NUM_TILES = 9


def far_permutations(count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """``count`` different permutations of nine tiles, far apart: (count, 9).

    Greedy: the first one is drawn, each next one has the largest mean Hamming distance to those before. Among equally
    far ones the first in a drawn order is taken.

    The mean distance falls with the number of tiles that lie as in an earlier permutation. That number is kept for
    each of the 9! candidates and moves by one comparison a round: 5 MB, and time linear in ``count``.
    """
    num_all = math.factorial(NUM_TILES)
    tiles = itertools.chain.from_iterable(itertools.permutations(range(NUM_TILES)))
    table = np.fromiter(tiles, np.uint8, num_all * NUM_TILES).reshape(num_all, NUM_TILES)
    columns = np.ascontiguousarray(generator.permutation(table).T)  # (9, 9!)
    num_shared = np.zeros(num_all, np.int32)
    chosen: list[int] = []
    for _ in range(count):
        best = int(num_shared.argmin())
        chosen.append(best)
        num_shared[best] = np.iinfo(np.int32).max // 2  # never again
        for column in columns:
            num_shared += column == column[best]
    return columns[:, chosen].T.astype(np.int64)
