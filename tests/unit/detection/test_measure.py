"""How well scores tell: against counting every pair by hand, and the interval's coverage by simulation."""

import numpy as np
import pytest

from ssl_backdoor.detection.measure import DEFINITION, auroc, measure_detection, measure_encoder, measure_filter
from ssl_backdoor.seeds import stream


def by_counting(positive: np.ndarray, negative: np.ndarray) -> float:
    wins = [(one > other) + (one == other) / 2 for one in positive for other in negative]
    return float(np.mean(wins))


@pytest.mark.parametrize("seed", range(4))
def test_the_area_is_that_of_counting_every_pair(seed: int) -> None:
    rng = stream(seed, "scores")
    positive, negative = rng.integers(0, 9, 17) + 1.0, rng.integers(0, 9, 30) * 1.0  # with ties
    area, low, high = auroc(positive, negative)
    assert area == pytest.approx(by_counting(positive, negative), abs=1e-12)
    assert 0 <= low < area < high <= 1


@pytest.mark.parametrize(("shift", "num_positive"), [(0.0, 30), (1.0, 30), (1.0, 10), (2.0, 15), (2.0, 40)])
def test_its_interval_covers_the_true_area_as_often_as_it_says(shift: float, num_positive: int) -> None:
    from scipy.stats import norm

    true_area, rng, hits = norm.cdf(shift / 2**0.5), stream(0, "coverage"), 0
    for _ in range(1000):
        _, low, high = auroc(rng.normal(shift, 1, num_positive), rng.normal(0, 1, 200))
        hits += low <= true_area <= high
    assert 0.93 <= hits / 1000 <= 0.985


@pytest.mark.parametrize(("positive", "expected"), [([5.0, 6.0, 7.0], 1.0), ([-5.0, -6.0, -7.0], 0.0)])
def test_where_all_are_told_there_is_an_interval_all_the_same(positive: list[float], expected: float) -> None:
    area, low, high = auroc(np.array(positive), np.arange(4.0))
    assert area == expected
    assert high - low > 0.1


def test_equal_scores_tell_nothing() -> None:
    area, low, high = auroc(np.ones(5), np.ones(7))
    assert area == 0.5
    assert low < 0.5 < high


def test_a_filter_is_measured_by_what_it_leaves_out_of_either_kind() -> None:
    left_out, poison = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 0, 1], bool)
    rows = {row.name: row for row in measure_filter("mine", left_out, poison)}
    assert (rows["filter_recall"].value, rows["filter_recall"].n) == (1.0, 2)
    assert (rows["filter_false_positive_rate"].value, rows["filter_false_positive_rate"].n) == (1 / 3, 3)
    assert {row.probe for row in rows.values()} == {"mine"}
    (alone,) = measure_filter("mine", left_out, np.zeros(5, bool))
    assert alone.name == "filter_false_positive_rate"


def test_a_detector_is_measured_over_what_it_scored() -> None:
    scores, p_values = np.array([3.0, np.nan, 1.0, 0.0]), np.array([0.01, 0.5, 0.04, 0.9])
    rows = {row.name: row for row in measure_detection("mine", scores, p_values, np.array([1, 1, 0, 0], bool), "input")}
    assert (rows["detection_auroc"].value, rows["detection_auroc"].n) == (1.0, 3)
    assert rows["detection_true_positive_rate"].value == 0.5
    assert rows["detection_false_positive_rate"].value == 0.5
    clean = list(measure_detection("mine", scores, p_values, np.zeros(4, bool), "input"))
    assert [row.name for row in clean] == ["detection_false_positive_rate"]
    assert list(measure_detection("mine", scores, None, np.zeros(4, bool), "input")) == []


def test_of_an_encoder_what_was_not_found_is_left_out() -> None:
    told = [(row.name, row.value) for row in measure_encoder("mine", 2.0, None)]
    assert told == [("detection_found", 1.0), ("detection_score", 2.0)]
    assert [(row.name, row.value) for row in measure_encoder("mine", float("nan"), None)] == [("detection_found", 0.0)]


def test_every_number_has_its_definition() -> None:
    scores, truth = np.arange(4.0), np.array([0, 1, 0, 1], bool)
    rows = [*measure_detection("a", scores, scores / 4, truth, "sample"), *measure_filter("a", truth, truth)]
    rows += measure_encoder("a", 1.0, 0.5)
    assert {row.name for row in rows} == set(DEFINITION)
    assert all(row.definition == DEFINITION[row.name] and row.n for row in rows)
