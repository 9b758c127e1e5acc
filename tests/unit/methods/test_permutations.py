"""The permutation set against all 9! candidates, by brute force."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from ssl_backdoor.methods.permutations import far_permutations
from ssl_backdoor.seeds import stream


def mean_distance(permutations: np.ndarray) -> float:
    """Mean Hamming distance between two of them, in tiles."""
    differ = (permutations[:, None] != permutations[None]).sum(2)
    return float(differ[np.triu_indices(len(permutations), 1)].mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_each_next_one_is_as_far_from_those_before_as_any_candidate(seed: int) -> None:
    chosen = far_permutations(14, stream(seed, "permutations"))
    candidates = np.array(list(itertools.permutations(range(9))), dtype=np.uint8)
    shared = np.zeros(len(candidates), dtype=np.int64)
    is_chosen = np.zeros(len(candidates), dtype=bool)
    for permutation in chosen:
        assert sorted(permutation) == list(range(9))
        (row,) = np.flatnonzero((candidates == permutation).all(1))
        assert not is_chosen[row]
        assert shared[row] == shared[~is_chosen].min()
        is_chosen[row] = True
        shared += (candidates == permutation).sum(1)


def test_the_first_nine_share_no_place_at_all() -> None:
    """Rows of a Latin square: every Latin rectangle can be extended, so the greedy choice always finds the next."""
    assert mean_distance(far_permutations(9, stream(3, "permutations"))) == 9.0


def test_a_thousand_are_nearer_the_bound_than_drawn_ones() -> None:
    """Where each tile is as often in each place, two rows share 9 (n / 9 - 1) / (n - 1) places on average."""
    chosen = far_permutations(999, stream(0, "permutations"))
    assert len({tuple(row) for row in chosen}) == 999
    bound = 9 - 9 * (999 / 9 - 1) / 998
    drawn = np.array([stream(1, i).permutation(9) for i in range(999)])
    assert mean_distance(drawn) < mean_distance(chosen) <= bound + 1e-9
    assert mean_distance(chosen) == pytest.approx(bound, abs=1e-4)


def test_they_follow_from_the_generator() -> None:
    one, two, other = (far_permutations(20, stream(seed, "permutations")) for seed in (0, 0, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert np.array_equal(far_permutations(5, stream(0, "permutations")), one[:5])


@pytest.mark.slow
def test_two_thousand_take_seconds_and_little_memory() -> None:
    start = time.process_time()
    assert far_permutations(2000, stream(0, "permutations")).shape == (2000, 9)
    assert time.process_time() - start < 20
    tracemalloc.start()
    far_permutations(20, stream(0, "permutations"))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 32 << 20
