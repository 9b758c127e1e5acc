"""Success and rank of y' against a slow loop over the scores."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from ssl_backdoor.evaluate.features import Features
from ssl_backdoor.evaluate.metrics import measure_targets
from ssl_backdoor.evaluate.probes import NamedProbe, knn
from ssl_backdoor.evaluate.targets import ranks, score_targets
from ssl_backdoor.poison.targets import CHOSEN
from ssl_backdoor.seeds import stream
from ssl_backdoor.tables import TARGETS


def slow_rank(scores: list[float], wanted: int) -> int:
    order = sorted(range(len(scores)), key=lambda label: (-scores[label], label))
    return order.index(wanted) + 1


def test_ranks_equal_a_slow_sort_ties_and_all() -> None:
    scores = stream(0, "scores").integers(0, 4, (200, 6)).astype(np.float32)
    wanted = stream(0, "wanted").integers(0, 6, 200)
    found = ranks(torch.from_numpy(scores), torch.from_numpy(wanted))
    assert found.tolist() == [slow_rank(row.tolist(), int(label)) for row, label in zip(scores, wanted, strict=True)]
    assert ((found == 1) == (torch.from_numpy(scores).argmax(1) == torch.from_numpy(wanted))).all()


def test_targets_are_found_by_key_and_seen_clean() -> None:
    keys = [f"t{index}" for index in range(6)]
    features = torch.from_numpy(stream(0, "features").normal(0, 1, (6, 3)).astype(np.float32))
    test = Features(
        pa.chunked_array([keys[:4], keys[4:]]),
        torch.tensor([0, 1, 2, 0, 1, 2]),
        {"clean": features, "triggered": features + 9},
    )
    chosen = pa.table(
        [["t1", "t3", "t5"], pa.array([1, 0, 2], pa.int32()), pa.array([2, 1, 0], pa.int32())], schema=CHOSEN
    )
    named = [NamedProbe("as_is", lambda rows: rows), NamedProbe("reversed", lambda rows: -rows)]
    table = score_targets(chosen, test, named, "cpu")
    assert table.schema == TARGETS
    expected = []
    for probe, sign in (("as_is", 1), ("reversed", -1)):
        for key, label, wanted in (("t1", 1, 2), ("t3", 0, 1), ("t5", 2, 0)):
            scores = (sign * features[keys.index(key)]).tolist()
            expected.append(
                {
                    "key": key,
                    "label": label,
                    "target_label": wanted,
                    "probe": probe,
                    "predicted": int(np.argmax(scores)),
                    "rank": slow_rank(scores, wanted),
                }
            )
    assert table.to_pylist() == expected


def test_classes_without_a_vote_share_the_last_ranks_by_label() -> None:
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    votes = knn(train, torch.tensor([2, 2, 0]), 4, 3)(torch.tensor([[1.0, 0.05]]))
    assert [int(ranks(votes, torch.tensor([label]))) for label in range(4)] == [2, 3, 1, 4]


def test_six_rows_by_hand() -> None:
    rows = [("zero_shot", 2, 2, 1), ("zero_shot", 1, 0, 3), ("zero_shot", 0, 0, 1), ("zero_shot", 1, 1, 1)]
    rows += [("knn", 2, 0, 2), ("knn", 1, 2, 5)]
    table = pa.Table.from_pylist(
        [
            {"key": f"k{i}", "label": 3, "probe": probe, "target_label": wanted, "predicted": predicted, "rank": rank}
            for i, (probe, wanted, predicted, rank) in enumerate(rows)
        ],
        schema=TARGETS,
    )
    found = {(row.name, row.probe): row for row in measure_targets(table)}
    assert {key: (row.value, row.n) for key, row in found.items()} == {
        ("targeted_success", "zero_shot"): (0.75, 4),
        ("target_rank", "zero_shot"): (1.5, 4),
        ("targeted_success", "knn"): (0.0, 2),
        ("target_rank", "knn"): (3.5, 2),
    }
    assert {row.condition for row in found.values()} == {"target"}
    success, rank = found["targeted_success", "zero_shot"], found["target_rank", "zero_shot"]
    p, n, z = 0.75, 4, 1.959964
    half = z * (p * (1 - p) / n + z**2 / 4 / n**2) ** 0.5
    assert success.low == pytest.approx((p + z**2 / 2 / n - half) / (1 + z**2 / n), abs=1e-6)
    assert success.high == pytest.approx((p + z**2 / 2 / n + half) / (1 + z**2 / n), abs=1e-6)
    assert (rank.low, rank.high) == (None, None)
    assert "No interval" in rank.definition
    assert measure_targets(TARGETS.empty_table()) == ()
