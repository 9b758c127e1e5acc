import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ssl_backdoor.evaluate import similarity
from ssl_backdoor.evaluate.metrics import pair_similarity
from ssl_backdoor.evaluate.similarity import BINS, histogram, similarity_table
from ssl_backdoor.seeds import stream
from ssl_backdoor.tables import SIMILARITY


def slow_histogram(features: NDArray[np.float32]) -> list[int]:
    unit = [row / np.linalg.norm(row) for row in features.astype(np.float64)]
    cosines = [float(unit[u] @ unit[v]) for u, v in itertools.combinations(range(len(unit)), 2)]
    return np.histogram(cosines, bins=np.linspace(-1, 1, 101))[0].tolist()


@pytest.mark.parametrize("n", [0, 1, 2, 6, 7, 8, 50])
def test_the_histogram_equals_the_slow_loop(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "_BLOCK", 7)  # some n fill a block, some do not
    features = stream(0, n).normal(0.2, 1, (n, 3)).astype(np.float32)
    found = histogram(torch.from_numpy(features)).tolist()
    assert found == slow_histogram(features)
    assert sum(found) == n * (n - 1) // 2


@pytest.mark.parametrize("n", [1, 8, 50])
def test_pairs_of_one_label_are_those_of_the_slow_loop(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "_BLOCK", 7)
    features = stream(0, n).normal(0.2, 1, (n, 3)).astype(np.float32)
    predicted = stream(1, n).integers(0, 3, n)
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    alike = [unit[u] @ unit[v] for u, v in itertools.combinations(range(n), 2) if predicted[u] == predicted[v]]
    values = {"clean": torch.from_numpy(features), "triggered": torch.from_numpy(features)}
    table = similarity_table(values, "cpu", torch.from_numpy(predicted)).to_pylist()
    found = [row["num_pairs"] for row in table if row["condition"] == similarity.SAME_LABEL]
    assert found == np.histogram(alike, bins=np.linspace(-1, 1, 101))[0].tolist()
    assert len(table) == 3 * BINS


def test_the_ends_belong_to_the_outer_bins() -> None:
    found = histogram(torch.tensor([[3.0, 0.0], [5.0, 0.0], [-1.0, 0.0]]))
    assert (found[0], found[-1], found.sum()) == (2, 1, 3)


def test_the_table_gives_the_mean_of_the_measurements_back() -> None:
    clean, triggered = (stream(0, name).normal(1, 1, (40, 16)).astype(np.float32) for name in ("clean", "triggered"))
    values = {"clean": torch.from_numpy(clean), "triggered": torch.from_numpy(triggered)}
    table = similarity_table(values, "cpu")
    assert table.schema == SIMILARITY
    rows = table.to_pylist()
    assert [row["condition"] for row in rows] == ["clean"] * BINS + ["triggered"] * BINS
    assert (rows[0]["low"], rows[BINS - 1]["high"]) == (-1.0, 1.0)
    for condition, features in (("clean", clean), ("triggered", triggered)):
        here = [row for row in rows if row["condition"] == condition]
        assert all(row["high"] - row["low"] == pytest.approx(2 / BINS) for row in here)
        mean = sum((row["low"] + row["high"]) / 2 * row["num_pairs"] for row in here) / (40 * 39 / 2)
        expected = pair_similarity(features)
        assert expected is not None
        assert mean == pytest.approx(expected.mean, abs=1 / BINS)
