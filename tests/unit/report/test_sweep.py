import dataclasses

import numpy as np
import pytest
from report_fakes import find, wilson
from scipy import stats
from sweep_fakes import (
    RATE,
    RATES,
    SIMILAR,
    SUCCESS,
    backdoor,
    backdoor_run,
    backdoor_sweep,
    targeted,
    targeted_run,
    targeted_sweep,
)

from ssl_backdoor.errors import SpecError
from ssl_backdoor.report.estimates import swept
from ssl_backdoor.report.frame import CONTROL, SUSPECT
from ssl_backdoor.report.intervals import infer_share
from ssl_backdoor.report.swept import curves_of, x_of
from ssl_backdoor.specs import FigureSpec


@pytest.fixture(scope="module")
def success():
    return swept([SUCCESS], targeted_sweep())


@pytest.fixture(scope="module")
def rate():
    return swept([RATE, SIMILAR], backdoor_sweep())


def row(rows, name, arm, condition, probe="zero_shot", variant=""):
    found = find(rows, name, arm, condition, probe, variant)
    assert found is not None, (name, arm, condition, probe, variant)
    return found


def test_success_is_pooled_over_the_pairs_of_all_models(success):
    got = row(success, "targeted_success", "suspect", "num_poisons=2")
    assert (got.value, got.n, got.interval) == (pytest.approx(5 / 12), 12, "wilson")
    assert (got.low, got.high) == pytest.approx(infer_share(np.array([2.0, 2, 1]), np.full(3, 4.0)))
    assert got.low < wilson(5, 12)[0] < wilson(5, 12)[1] < got.high  # targets of one model are not independent
    assert "3 models with 4 (x', y') pair(s) each" in got.definition


def test_pairs_of_their_own_model_are_independent():
    rows = swept([SUCCESS], [targeted(targeted_run(3, seed, pairs=1), "suspect", seed % 2) for seed in range(4)])
    got = row(rows, "targeted_success", "suspect", "num_poisons=3")
    assert (got.value, got.n) == (0.5, 4)
    exact = stats.binomtest(2, 4).proportion_ci()
    assert (got.low, got.high) == pytest.approx((exact.low, exact.high))


def test_the_control_stands_at_zero_once_a_model(success):
    got = row(success, "targeted_success", "control", "num_poisons=0")
    assert (got.value, got.n) == (pytest.approx(1 / 12), 12)
    assert {one.record()["condition"] for one in success.rows if one.point.arm == CONTROL} == {
        "num_poisons=0",
        "num_poisons=0, clean",
    }
    assert row(success, "accuracy", "control", "num_poisons=0, clean").n == 3


def test_all_else_is_a_mean_over_models_with_an_interval_within_its_range(rate):
    got = row(rate, "attack_success_rate", "suspect", "num_poisons=50")
    half = stats.t.ppf(0.975, 2) * np.std(RATES[50], ddof=1) / np.sqrt(3)
    assert (got.value, got.n, got.interval) == (pytest.approx(np.mean(RATES[50])), 3, "beta")
    assert 0 < got.low < got.value < got.high < 1 < got.value + half
    z = row(rate, "z_score_sd", "suspect", "num_poisons=50", "features")
    assert (z.value, z.high) == pytest.approx((3 * got.value, 3 * (got.value + half)))


def test_conditions_beside_the_main_one_are_named(rate):
    assert row(rate, "attack_success_rate", "suspect", "num_poisons=50, unseen_trigger").n == 3
    assert row(rate, "accuracy", "suspect", "num_poisons=50, clean").value == pytest.approx(0.49)
    assert row(rate, "accuracy", "suspect", "num_poisons=50").value == pytest.approx(0.245)
    assert not [one for one in rate.rows if one.measure.class_name]


def test_differences_to_the_control_are_paired_by_model(rate, success):
    got = row(rate, "attack_success_rate_excess", "suspect", "num_poisons=5")
    differences = np.array(RATES[5]) - (0.1, 0.11, 0.12)
    assert got.value == pytest.approx(differences.mean())
    half = stats.t.ppf(0.975, 2) * differences.std(ddof=1) / np.sqrt(3)
    assert (got.high - got.low) / 2 == pytest.approx(half, rel=0.05)  # far from both ends: Student's t
    clean = row(success, "accuracy_excess", "suspect", "num_poisons=8, clean")
    assert clean.value == pytest.approx((0.01 + 0.012 + 0.01) / 3)
    assert clean.low > 0  # paired: the spread between seeds is gone


def test_an_encoder_of_several_series_is_counted_in_the_first(rate):
    assert {one.point.arm.name for one in rate.rows if one.point.variant == "cleanclip"} == {
        "student",
        "distilled_control",
    }
    assert row(rate, "attack_success_rate", "student", "num_poisons=50", variant="cleanclip").value == pytest.approx(
        0.21
    )
    cost = row(rate, "accuracy_excess", "student", "num_poisons=50, clean", variant="cleanclip")
    assert cost.value == pytest.approx(-0.01)
    assert row(rate, "seconds", "student", "num_poisons=50", "", "cleanclip").value == pytest.approx(9.0)


def test_one_model_has_no_interval_over_models():
    rows = swept([RATE], [backdoor(backdoor_run(5), "suspect", 0.3), backdoor(backdoor_run(5), "control", 0.1)])
    got = row(rows, "attack_success_rate", "suspect", "num_poisons=5")
    assert (got.n, got.low, got.interval) == (1, None, "none")
    assert got.told_interval[2] == "within 1 model, over its 900"
    excess = row(rows, "attack_success_rate_excess", "suspect", "num_poisons=5")
    assert (excess.value, excess.n, excess.low) == (pytest.approx(0.2), 1, None)


@pytest.mark.parametrize(
    ("axis", "facts", "x"),
    [("num_train", {"num_train": 250}, "250"), ("num_parameters", {"num_parameters": 38_316_896}, "38316896")],
)
def test_other_axes_hold_a_control_at_every_point(axis, facts, x):
    figure = FigureSpec(
        name="f", title="F", attack="carlini2022_backdoor", axis=axis, measures=("z_score_sd/features",)
    )
    scored = [
        backdoor(backdoor_run(50, seed), arm, value + seed / 100, **facts)
        for seed in range(2)
        for arm, value in (("control", 0.1), ("suspect", 0.8))
    ]
    rows = swept([figure], scored)
    assert row(rows, "z_score_sd", "control", f"{axis}={x}", "features").n == 2
    (control, suspect) = curves_of(figure, rows)
    assert [x_of(row) for row in suspect.points] == [float(x)] == [x_of(row) for row in control.points]


def test_curves_come_back_from_the_rows(success):
    control, suspect = curves_of(SUCCESS, success)
    assert (control.arm, suspect.arm, suspect.measure.probe) == (CONTROL, SUSPECT, "zero_shot")
    assert [x_of(row) for row in suspect.points] == [1, 2, 4, 8]
    assert [row.value for row in suspect.points] == pytest.approx([2 / 12, 5 / 12, 11 / 12, 1.0])


def test_points_that_mix_are_refused():
    few, many = targeted(targeted_run(1, 0, pairs=4), "suspect", 1), targeted(targeted_run(2, 0, pairs=8), "suspect", 1)
    with pytest.raises(SpecError, match="4 and 8"):
        swept([SUCCESS], [few, many])
    sides = [backdoor(backdoor_run(5, seed, size_frac=0.1 * (1 + seed)), "suspect", 0.5) for seed in range(2)]
    with pytest.raises(SpecError, match="differ in more than seed"):
        swept([RATE], sides)
    with pytest.raises(SpecError, match="two results for suspect"):
        swept([RATE], [backdoor(backdoor_run(5), "suspect", rate) for rate in (0.1, 0.2)])


def test_an_axis_that_no_encoder_has_is_refused():
    figure = FigureSpec(name="f", title="F", attack="carlini2022_backdoor", axis="patch_frac", measures=("a/b",))
    with pytest.raises(SpecError, match="patch_frac"):
        swept([figure], [backdoor(backdoor_run(5), "suspect", 0.5)])


def test_two_attacks_in_one_report_need_names_of_their_own():
    mixed = [targeted(targeted_run(1), "suspect", 1), backdoor(backdoor_run(1), "suspect", 0.5)]
    with pytest.raises(SpecError, match="distinct variant names"):
        swept([SUCCESS, RATE], mixed)
    named = [dataclasses.replace(one, run=one.run.model_copy(update={"variant": one.run.attack.kind})) for one in mixed]
    variants = {one.point.variant for one in swept([SUCCESS, RATE], named).rows}
    assert variants == {"carlini2022_targeted", "carlini2022_backdoor"}
