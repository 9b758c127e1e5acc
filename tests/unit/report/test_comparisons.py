import numpy as np
import pytest
from matrix_fakes import KEY, grid, table
from report_fakes import bare
from scipy import stats

from ssl_backdoor.report.comparisons import MOST_UNITS, compare, units_needed
from ssl_backdoor.report.estimates import paired
from ssl_backdoor.report.frame import Measure
from ssl_backdoor.specs import TableRow

# One pair, seeds as columns: means 300, 30, -40 and 1.
EXCESS = {
    "far": [[290, 310, 300, 300]],
    "near": [[10, 50, 30, 30]],
    "under": [[-30, -50, -40, -40]],
    "none": [[31, -29, 12, -10]],
}


def compared(excess=EXCESS, unit="seed", **changes):
    return compare([table(tuple(excess), **changes)], paired(grid(excess), unit))[0]


def holm_by_hand(ps):
    order, corrected, worst = np.argsort(ps), np.zeros(len(ps)), 0.0
    for rank, position in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[position]))
        corrected[position] = worst
    return corrected


def test_mean_interval_p_and_effect_by_hand():
    near = compared()[1]
    values = np.array(EXCESS["near"][0])
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    row = near.difference
    assert (row.n, row.unit, row.value) == (4, "seed", 30.0)
    assert (row.low, row.high) == pytest.approx((30 - half, 30 + half), abs=0.2)  # far from 4,000: Student's t
    assert near.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=0.02)
    assert near.effect_size == pytest.approx(30 / values.std(ddof=1))


def test_p_is_corrected_after_holm_over_the_lines_of_the_table():
    got = compared()
    ps = [one.p for one in got]
    assert [one.p_holm for one in got] == pytest.approx(holm_by_hand(ps))
    assert got[2].p < got[2].p_holm
    (alone,) = compared({"near": EXCESS["near"]})
    assert alone.p_holm == pytest.approx(alone.p)


def test_p_is_corrected_over_all_tables_and_so_are_the_intervals_that_rank():
    results = paired(grid(EXCESS), "seed")
    whole = table(tuple(EXCESS))
    (alone,), (first, second) = compare([whole], results), compare([whole, whole], results)
    assert [one.p_holm for one in first] == pytest.approx(holm_by_hand([one.p for one in (*first, *second)])[:4])
    assert all(a.p_holm <= b.p_holm for a, b in zip(alone, first, strict=True))
    assert {one.label for one in first if one.apart_from} <= {one.label for one in alone if one.apart_from}


def test_verdicts_follow_the_corrected_p_and_the_sign():
    far, near, under, none = compared()
    assert [one.verdict for one in (far, under, none)] == ["above", "below", "unclear"]
    assert near.p < 0.05 < near.p_holm
    assert near.verdict == "unclear"
    assert compared({"near": EXCESS["near"]})[0].verdict == "above"


def test_lines_are_apart_where_their_intervals_do_not_overlap():
    got = {one.label: set(one.apart_from) for one in compared()}
    assert got["far"] == {"near", "under", "none"}
    assert got["under"] == {"far", "near"}
    assert got["near"] == {"far", "under"}
    assert got["none"] == {"far"}


def test_one_unit_has_a_difference_and_nothing_else():
    (one,) = compared({"a": [[300]]})
    row = one.difference
    assert (row.n, row.value, row.low, one.p, one.p_holm, one.units_needed) == (1, 300.0, None, None, None, None)
    assert one.verdict == "untested"
    assert row.pair_range is None


def test_identical_differences_give_no_test():
    (one,) = compared({"a": [[7, 7, 7]]})
    row = one.difference
    assert (row.n, row.value, row.low, one.p, one.verdict) == (3, 7.0, None, None, "untested")


def test_what_was_not_measured_says_so_and_leaves_the_others_alone():
    (got,) = compare([table(("a", "failed"))], paired(grid({"a": EXCESS["near"]}), "seed"))
    assert [one.verdict for one in got] == ["above", "unmeasured"]
    assert (got[1].difference.num_units, got[1].difference.value) == (0, None)
    assert got[0].p_holm == pytest.approx(got[0].p)


def test_seeds_average_their_pairs_and_the_range_is_over_pairs():
    (one,) = compared({"a": [[100, 300], [500, 900], [0, 60]]})
    assert (one.difference.n, one.difference.value) == (2, pytest.approx(310.0))
    assert one.difference.pair_range == (30.0, 700.0)
    (over_pairs,) = compared({"a": [[100, 300], [500, 900], [0, 60]]}, "pair")
    assert (over_pairs.difference.n, over_pairs.difference.unit) == (3, "pair")


def test_a_line_about_one_arm_sets_that_arm_against_the_control():
    runs = [
        bare(arm, [(*KEY, value + seed)], seed=seed, variant="kept")
        for seed in range(3)
        for arm, value in (("control", 100.0), ("suspect", 900.0 + seed), ("student", 150.0 - seed))
    ]
    rows = tuple(TableRow(label=arm, variant="kept", arm=arm) for arm in ("control", "suspect", "student"))
    (got,) = compare([table((), rows=rows)], paired(runs, "seed"))
    assert [(one.label, one.difference.value) for one in got] == [("suspect", 801.0), ("student", 49.0)]


def test_a_side_variant_borrows_the_main_control():
    main = grid({"": [[300, 310]]})
    side = [one for one in grid({"half": [[100, 120]]}) if one.arm == "suspect"]
    ((one,),) = compare([table(("half",))], paired([*main, *side], "seed"))
    assert one.difference.value == pytest.approx(110.0)


def test_pairs_that_share_one_clean_trained_encoder_are_no_test():
    (one,) = compared({"a": [[590], [600], [610]]}, "pair")
    assert (one.difference.num_units, one.p, one.verdict) == (3, None, "untested")


def test_units_needed_are_a_range_and_none_below_five():
    assert compared()[1].units_needed is None
    few, many = compared({"a": [[10, 50, 30, 60, -20]]})[0].units_needed
    assert 3 <= few < many or many == 0


def test_scores_of_the_features_have_no_probe_of_their_own():
    assert Measure.of_table("z_score_sd", "triggered", "knn").probe == "features"
    assert Measure.of_table("accuracy", "clean", "knn").probe == "knn"


def power_by_hand(effect, n):
    """Of the two-sided one-sample t-test at 5 %, from the noncentral t distribution."""
    bound, shift = stats.t.ppf(0.975, n - 1), effect * np.sqrt(n)
    return stats.nct.sf(bound, n - 1, shift) + stats.nct.cdf(-bound, n - 1, shift)


@pytest.mark.parametrize(("effect", "needed"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_units_needed_are_the_least_with_80_percent_power(effect, needed):
    assert units_needed(effect) == units_needed(-effect) == needed
    assert power_by_hand(effect, needed) >= 0.8 > power_by_hand(effect, needed - 1)


def test_no_number_of_units_is_named_beyond_the_limit():
    assert units_needed(0.0) == units_needed(0.01) == 0
    assert 1000 < units_needed(0.03) <= MOST_UNITS


def test_huge_effects_need_three_units_and_the_need_never_rises_with_the_effect():
    needs = [units_needed(effect) for effect in np.linspace(0.1, 15.0, 300)]
    assert needs == sorted(needs, reverse=True)
    assert units_needed(1e9) == 3
