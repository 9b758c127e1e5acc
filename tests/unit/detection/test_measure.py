"""How well scores tell: against counting every pair by hand, and the interval's coverage by simulation."""

import numpy as np
import pytest

from ssl_backdoor.detection.measure import (
    DEFINITION,
    auroc,
    average_precision,
    conformal_p_values,
    false_positive_rate_at,
    hits_among_top,
    measure_detection,
    measure_encoder,
    measure_filter,
    recall_at,
)
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
    rows = {row.name: row for row in measure_filter("mine", np.arange(5.0), left_out, None, poison)}
    assert (rows["filter_recall"].value, rows["filter_recall"].n) == (1.0, 2)
    assert (rows["filter_false_positive_rate"].value, rows["filter_false_positive_rate"].n) == (1 / 3, 3)
    assert {row.probe for row in rows.values()} == {"mine"}
    (alone,) = measure_filter("mine", np.arange(5.0), left_out, None, np.zeros(5, bool))
    assert alone.name == "filter_false_positive_rate"


def scores_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """With ties; 17 poisoned, then 30 clean."""
    rng = stream(seed, "scores")
    return rng.integers(0, 9, 17) + 1.0, rng.integers(0, 9, 30) * 1.0


@pytest.mark.parametrize("seed", range(4))
def test_measures_of_a_ranking_are_those_of_trying_every_threshold(seed: int) -> None:
    from sklearn.metrics import average_precision_score

    positive, negative = scores_of(seed)
    truth, both = np.repeat([1, 0], [17, 30]), np.concatenate([positive, negative])
    assert average_precision(positive, negative) == pytest.approx(average_precision_score(truth, both), abs=1e-12)
    points = [((positive >= at).mean(), (negative >= at).mean()) for at in [*np.unique(both), np.inf]]
    assert false_positive_rate_at(0.95, positive, negative) == min(rate for recall, rate in points if recall >= 0.95)
    for allowed in (0.0, 0.01, 0.05, 0.5, 1.0):
        assert recall_at(allowed, positive, negative) == max(recall for recall, rate in points if rate <= allowed)


@pytest.mark.parametrize("number", [1, 5, 17, 46, 47])
def test_equal_scores_at_the_border_count_as_often_as_chance_takes_them(number: int) -> None:
    positive, negative = scores_of(0)
    scores, truth = np.concatenate([positive, negative]), np.repeat([True, False], [17, 30])
    scores[[3, 40]] = np.nan
    rng, drawn = stream(0, "order"), []
    for _ in range(4000):
        order = rng.permutation(len(scores))
        top = order[np.argsort(-np.nan_to_num(scores[order], nan=-1.0), kind="stable")[:number]]
        drawn.append(truth[top].sum())
    assert hits_among_top(number, scores, truth) == pytest.approx(np.mean(drawn), abs=0.1)


def test_of_none_and_of_more_than_all_nothing_is_hit() -> None:
    assert hits_among_top(0, np.arange(3.0), np.ones(3, bool)) == 0.0


def test_p_values_are_by_counting_references() -> None:
    scores = np.array([0.0, 1.0, 2.0, 3.0, np.nan, 2.0, np.nan])
    found = conformal_p_values(scores, np.array([1, 2, 6]), np.array([1, 2, 6]))
    np.testing.assert_allclose(found, [1.0, np.nan, np.nan, 1 / 3, np.nan, 2 / 3, np.nan])


@pytest.mark.parametrize("num_references", [19, 50, 199])
@pytest.mark.parametrize("ties", [False, True])
def test_p_values_of_clean_samples_are_valid(num_references: int, ties: bool) -> None:
    """Of samples that could be exchanged with the references p <= t in at most a share t of cases, up to chance."""
    rng, levels = stream(num_references, "conformal"), (0.05, 0.1, 0.2, 0.5)
    hits = np.zeros(len(levels))
    for _ in range(3000):
        scores = rng.normal(size=num_references + 1)
        scores = np.round(scores) if ties else scores
        (p, *_) = conformal_p_values(scores, np.arange(1, num_references + 1), np.arange(1, num_references + 1))
        hits += [p <= level for level in levels]
    rates, allowed = hits / 3000, np.array(levels)
    assert (rates <= allowed + 3 * np.sqrt(allowed * (1 - allowed) / 3000)).all()
    if not ties:  # and not far from it
        assert (rates >= allowed - 1 / (num_references + 1) - 3 * np.sqrt(allowed * (1 - allowed) / 3000)).all()


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
    rows = [*measure_filter("a", scores, truth, scores / 4, truth)]
    rows += measure_encoder("a", 1.0, 0.5)
    assert {row.name for row in rows} == set(DEFINITION)
    assert all(row.definition == DEFINITION[row.name] and row.n for row in rows)
