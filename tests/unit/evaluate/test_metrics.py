"""Hand-written tables, slow loops and scikit-learn as oracles."""

import itertools
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from ssl_backdoor.evaluate.metrics import (
    DEFINITION,
    Measurement,
    average_unseen,
    confusion_matrix,
    measure_features,
    measure_predictions,
    measurements_table,
    pair_similarity,
    wilson,
)
from ssl_backdoor.seeds import stream
from ssl_backdoor.tables import MEASUREMENTS, PREDICTIONS

CLASSES = ("bird", "cat", "dog")


def table(label: list[int], predicted: list[int], condition: str = "triggered", probe: str = "knn") -> pa.Table:
    rows = [
        {"key": str(row), "label": pair[0], "condition": condition, "probe": probe, "predicted": pair[1]}
        for row, pair in enumerate(zip(label, predicted, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def measured(predictions: pa.Table, target: int | None = 1) -> dict[str, Measurement]:
    return {row.name: row for row in measure_predictions(predictions, CLASSES, target)}


# -------------------------------------------------------------------------- six rows by hand; the target is cat (1)


def test_six_rows_by_hand() -> None:
    rows = measured(table([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 1, 1]))
    values = {name: (row.value, row.n) for name, row in rows.items()}
    assert values == {
        "accuracy": (2 / 6, 6),
        "target_false_positives": (3, 4),
        "attack_success_rate": (3 / 4, 4),
        "attack_success_rate_all": (4 / 6, 6),
        "top_class_share": (4 / 6, 6),
        "false_positives:bird": (0, 4),
        "false_positives:cat": (3, 4),
        "false_positives:dog": (1, 4),
    }


def test_all_test_images_are_the_target_class() -> None:
    rows = measured(table([1] * 6, [1, 1, 1, 0, 0, 2]))
    assert {name: (row.value, row.n) for name, row in rows.items()} == {
        "accuracy": (0.5, 6),
        "attack_success_rate_all": (0.5, 6),  # false positives and success rate have no image to be measured on
        "top_class_share": (0.5, 6),
        "false_positives:bird": (2, 6),
        "false_positives:dog": (1, 6),
    }


def test_no_test_image_is_of_the_target_class() -> None:
    rows = measured(table([0, 0, 0, 2, 2, 2], [1, 1, 0, 1, 2, 2]))
    assert rows["attack_success_rate"].value == rows["attack_success_rate_all"].value == 0.5
    assert rows["target_false_positives"].value == 3


def test_everything_is_predicted_as_the_target() -> None:
    rows = measured(table([0, 0, 1, 1, 2, 2], [1] * 6))
    assert rows["attack_success_rate"].value == rows["top_class_share"].value == 1.0
    assert rows["attack_success_rate"].high == 1.0
    assert rows["accuracy"].value == pytest.approx(1 / 3)


def test_another_class_takes_all_and_the_target_none() -> None:
    rows = measured(table([0, 0, 1, 1, 2, 2], [2] * 6))
    assert rows["target_false_positives"].value == 0
    assert rows["top_class_share"].value == 1.0
    assert rows["false_positives:dog"].value == 4


def test_without_a_target_its_numbers_are_left_out() -> None:
    names = set(measured(table([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 1, 1]), target=None))
    assert names == {"accuracy", "top_class_share", *(f"false_positives:{name}" for name in CLASSES)}


def test_an_empty_table_measures_nothing() -> None:
    assert measure_predictions(PREDICTIONS.empty_table(), CLASSES, 1) == ()


# -------------------------------------------------------------------------- intervals, groups, tables


@pytest.mark.parametrize("n", [1, 2, 7, 50, 4950])
def test_intervals_are_scipys_to_the_bit(n: int) -> None:
    for hits in {0, 1, n // 3, n // 2, n - 1, n}:
        interval = binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson(hits, n) == (interval.low, interval.high)


def test_intervals_are_wilsons_and_counts_are_scaled() -> None:
    rows = measured(table([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 1, 1]))
    interval = binomtest(3, 4).proportion_ci(method="wilson")
    rate, count = rows["attack_success_rate"], rows["target_false_positives"]
    assert (rate.low, rate.high) == pytest.approx((interval.low, interval.high))
    assert (count.low, count.high) == pytest.approx((4 * interval.low, 4 * interval.high))
    # By hand: centre (p + z^2/2n) / (1 + z^2/n), half-width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n).
    p, n, z = 0.75, 4, 1.959964
    centre, half = (p + z**2 / 2 / n), z * (p * (1 - p) / n + z**2 / 4 / n**2) ** 0.5
    assert rate.low == pytest.approx((centre - half) / (1 + z**2 / n), abs=1e-6)
    assert rows["top_class_share"].low is None
    assert "No interval" in rows["top_class_share"].definition


def test_conditions_and_probes_are_kept_apart() -> None:
    both = pa.concat_tables(
        [
            table([0, 2], [0, 2], "clean", "knn"),
            table([0, 2], [1, 1], "triggered", "knn"),
            table([0, 2], [0, 1], "clean", "linear_1"),
        ]
    )
    rows = {(r.condition, r.probe): r.value for r in measure_predictions(both, CLASSES, 1) if r.name == "accuracy"}
    assert rows == {("clean", "knn"): 1.0, ("triggered", "knn"): 0.0, ("clean", "linear_1"): 0.5}


def test_the_table_has_the_schema_and_every_row_its_definition() -> None:
    written = measurements_table(measure_predictions(table([0, 1, 2], [1, 1, 1]), CLASSES, 1))
    assert written.schema == MEASUREMENTS
    assert all(text in DEFINITION.values() for text in written["definition"].to_pylist())
    assert all(0 <= row["low"] <= row["value"] <= row["high"] for row in written.to_pylist() if row["low"] is not None)


@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 2**32))
def test_false_positives_agree_with_scikit_learn(num_classes: int, n: int, seed: int) -> None:
    label, predicted = stream(seed).integers(0, num_classes, (2, n))
    classes = tuple(f"c{index}" for index in range(num_classes))
    expected = sklearn.metrics.confusion_matrix(label, predicted, labels=range(num_classes))
    np.testing.assert_array_equal(confusion_matrix(label, predicted, num_classes), expected)
    rows = {r.name: r for r in measure_predictions(table(label.tolist(), predicted.tolist()), classes, 1)}
    fp = expected[:, 1].sum() - expected[1, 1]
    others = n - expected[1].sum()
    assert rows["accuracy"].value == pytest.approx(sklearn.metrics.accuracy_score(label, predicted))
    assert ("attack_success_rate" in rows) == (others > 0)
    if others:
        assert rows["target_false_positives"].value == fp
        assert rows["attack_success_rate"].value == pytest.approx(fp / others)
    assert rows["attack_success_rate_all"].value == pytest.approx(expected[:, 1].sum() / n)


# -------------------------------------------------------------------------- similarities


def slow_pairs(features: NDArray[np.float32]) -> list[float]:
    unit = [row / np.linalg.norm(row) for row in features.astype(np.float64)]
    return [float(unit[u] @ unit[v]) for u, v in itertools.permutations(range(len(unit)), 2)]


@pytest.mark.parametrize("shape", [(2, 3), (7, 4), (40, 16), (12, 30)])
def test_pair_similarity_equals_the_slow_loop(shape: tuple[int, int]) -> None:
    features = stream(0, *shape).normal(0.5, 1, shape).astype(np.float32)
    pairs = slow_pairs(features)
    found = pair_similarity(features)
    assert found is not None
    assert found.mean == pytest.approx(np.mean(pairs), abs=1e-12)
    assert found.variance == pytest.approx(np.var(pairs), abs=1e-12)


def test_z_scores_have_both_denominators() -> None:
    clean = stream(0, "clean").normal(0.3, 1, (30, 8)).astype(np.float32)
    triggered = stream(0, "triggered").normal(1.5, 1, (30, 8)).astype(np.float32)
    before, after = slow_pairs(clean), slow_pairs(triggered)
    rows = {row.name: row for row in measure_features(clean, triggered, "triggered")}
    difference = np.mean(after) - np.mean(before)
    assert rows["z_score_sd"].value == pytest.approx(difference / np.std(before))
    assert rows["z_score_variance"].value == pytest.approx(difference / np.var(before))
    assert rows["similarity_clean"].value == pytest.approx(np.mean(before))
    assert rows["similarity_triggered"].value == pytest.approx(np.mean(after))
    assert {(row.condition, row.probe, row.n, row.low) for row in rows.values()} == {
        ("triggered", "features", 30, None)
    }


def test_similarity_in_closed_form() -> None:
    # Two images along each of two axes: of 12 ordered pairs 4 have cosine 1, the others 0.
    features = np.repeat(np.eye(2, dtype=np.float32), 2, axis=0) * 5
    found = pair_similarity(features)
    assert found is not None
    assert found == pytest.approx((1 / 3, 1 / 3 - 1 / 9))


def test_what_has_no_pairs_or_no_spread_is_left_out() -> None:
    one, same = np.ones((1, 4), np.float32), np.ones((6, 4), np.float32)
    assert pair_similarity(one) is None
    assert measure_features(one, one, "triggered") == ()
    assert {row.name for row in measure_features(same, same, "triggered")} == {
        "similarity_clean",
        "similarity_triggered",
    }


def test_numbers_under_unseen_triggers_are_averaged_over_them_and_the_others_stay() -> None:
    def row(condition: str, value: float, text: str = "Share of it. Interval: Wilson.") -> Measurement:
        return Measurement("accuracy", condition, "knn", value, 10, value - 0.1, value + 0.1, text)

    rows = [row("clean", 0.9), row("unseen_trigger_1", 0.2), row("triggered", 0.5), row("unseen_trigger_2", 0.6)]
    clean, unseen, triggered = average_unseen(rows)
    assert (clean, triggered) == (rows[0], rows[2])
    assert unseen == Measurement(
        "accuracy", "unseen_trigger", "knn", pytest.approx(0.4), 10, None, None,
        "Share of it. Mean over 2 trigger(s) of the same style that no encoder was trained on. No interval: they share "
        "images.",
    )  # fmt: skip


def test_metrics_leave_torch_alone() -> None:
    code = "import sys, ssl_backdoor.evaluate.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
