import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from report_fakes import bare, find, run_spec, ten_pairs
from scipy import stats

from ssl_backdoor.errors import SpecError
from ssl_backdoor.report.estimates import FEW_CONTROLS, paired
from ssl_backdoor.report.frame import Measure, headline_probes, pair_of
from ssl_backdoor.report.sections.pairs import cases_of

FP = ("target_false_positives", "triggered", "knn")
MEASURE = Measure(*FP)
CONTROL, SUSPECT, STUDENT = [100, 120, 90, 110], [1100, 700, 1300, 400], [300, 250, 500, 100]


def arms(values, **spec):
    """One run: FP of control, suspect and student."""
    return [
        bare(arm, [(*FP, float(v))], **spec) for arm, v in zip(("control", "suspect", "student"), values, strict=False)
    ]


def four_pairs():
    return [
        one for i, v in enumerate(zip(CONTROL, SUSPECT, STUDENT, strict=True)) for one in arms(v, trigger_seed=11 + i)
    ]


def row(rows, name, arm, variant=""):
    found = find(rows, name, arm, *FP[1:], variant)
    assert found is not None, f"no row {name} of {arm}"
    return found


def test_mean_and_interval_over_pairs_are_students_where_nothing_bounds_them():
    got = row(paired(four_pairs()), FP[0], "suspect")
    assert (got.value, got.n, got.interval, got.num_images) == (875.0, 4, "beta", 4000)
    assert 0 < got.low < 875 < got.high < 4000
    z = [bare("suspect", [("z_score_sd", "triggered", "features", float(v))], trigger_seed=v) for v in SUSPECT]
    half = stats.t.ppf(0.975, 3) * np.std(SUSPECT, ddof=1) / 2
    unbounded = find(paired(z), "z_score_sd", "suspect", "triggered", "features")
    assert (unbounded.low, unbounded.high) == pytest.approx((875 - half, 875 + half))
    assert (unbounded.interval, unbounded.p is not None) == ("t", True)
    assert "4 (trigger, target) pairs, one seed each" in got.definition


def test_excess_is_paired_and_narrower_than_the_difference_of_levels():
    bases = enumerate((100, 500, 900))
    runs = [one for i, base in bases for one in arms((base, base + 50 + i), seed=i)]
    got = row(paired(runs), "target_false_positives_excess", "suspect")
    assert got.value == pytest.approx(51.0)
    assert got.high - got.low < 8.0
    assert got.p < 0.001


def test_control_is_matched_by_pair_not_by_order():
    runs = [*arms((10, 30), trigger_seed=1), *arms((1000, 1020), trigger_seed=2)]
    assert row(paired(runs[::-1]), "target_false_positives_excess", "suspect").value == pytest.approx(20.0)


def test_seeds_within_a_pair_are_averaged_before_the_pairs():
    runs = [
        *arms((0, 100), trigger_seed=1, seed=0),
        *arms((0, 300), trigger_seed=1, seed=1),
        *arms((0, 600), trigger_seed=2, seed=0),
    ]
    got = row(paired(runs), FP[0], "suspect")
    assert (got.value, got.n) == (400.0, 2)  # (200 + 600) / 2, not 1000 / 3
    assert "seeds within a pair averaged first" in got.definition


def test_one_pair_with_seeds_replicates_over_seeds_and_says_so():
    got = row(paired([one for seed, v in enumerate((5, 7, 9)) for one in arms((0, v), seed=seed)]), FP[0], "suspect")
    assert (got.value, got.n, got.interval) == (7.0, 3, "beta")
    assert "spread between pairs is not in it" in got.definition


def test_a_single_run_has_no_interval_over_models_but_its_own_within_it():
    runs = [bare("suspect", [(*FP, 40.0, 4000, 29.0, 54.0)])]
    got = row(paired(runs), FP[0], "suspect")
    assert (got.value, got.n, got.low, got.high, got.interval) == (40.0, 1, None, None, "none")
    assert got.told_interval == (29.0, 54.0, "within 1 model, over its 4,000")
    assert "1 model: no interval over models" in got.definition


def test_nothing_of_a_single_pair_of_encoders_is_significant():
    rows = paired(arms((10, 40, 20)))
    excess = row(rows, "target_false_positives_excess", "suspect")
    assert (excess.value, excess.n, excess.low, excess.p, excess.interval) == (30.0, 1, None, None, "none")
    removed = row(rows, "target_false_positives_removed_frac", "student")
    assert (removed.value, removed.low) == (None, None)


def own_seeds(*columns):
    """Seeds of one pair, so a clean-trained encoder of its own, a row."""
    return [one for i, v in enumerate(zip(*columns, strict=True)) for one in arms(v, seed=i)]


STRONG = [1100, 1000, 1200, 950]


def test_share_removed_is_a_ratio_of_means_with_fiellers_interval():
    got = row(paired(own_seeds(CONTROL, STRONG, STUDENT)), "target_false_positives_removed_frac", "student")
    assert got.value == pytest.approx((1062.5 - 287.5) / (1062.5 - 105))
    assert got.low < got.value < got.high <= 1.0
    assert got.interval == "fieller"
    lost, excess = (np.subtract(STRONG, other) for other in (STUDENT, CONTROL))
    t = stats.t.ppf(0.995, 3)
    for ratio in (got.low, min(got.high, 1.0)):
        rest = lost - ratio * excess
        if ratio < 1:
            assert abs(rest.mean()) == pytest.approx(t * rest.std(ddof=1) / 2, rel=1e-6)


def test_a_share_above_all_of_the_excess_is_told_as_all():
    got = row(paired(own_seeds(CONTROL, STRONG, [40, 30, 20, 10])), "target_false_positives_removed_frac", "student")
    assert (got.value, got.high) == (1.0, 1.0)


@pytest.mark.parametrize("suspects", [(100, 2000, 90, 110), (50, 60, 40, 55)], ids=["unclear", "negative"])
def test_share_removed_is_not_defined_without_a_clear_excess(suspects):
    got = row(paired(own_seeds(CONTROL, suspects, STUDENT)), "target_false_positives_removed_frac", "student")
    assert (got.value, got.low, got.high) == (None, None, None)
    assert "not defined: no excess above 0 at 1 %" in got.definition


def test_lost_accuracy_counts_as_excess_to_remove():
    key = ("accuracy", "triggered", "knn")
    values = {"control": (0.6, 0.61, 0.59), "suspect": (0.3, 0.32, 0.31), "student": (0.5, 0.52, 0.49)}
    runs = [bare(arm, [(*key, v)], seed=i) for arm, many in values.items() for i, v in enumerate(many)]
    got = find(paired(runs), "accuracy_removed_frac", "student", "triggered", "knn")
    assert got is not None
    assert got.value == pytest.approx((1.51 - 0.93) / (1.80 - 0.93))


def test_a_side_variant_borrows_the_main_control_of_the_same_pair():
    runs = [*arms((100, 400)), *arms((999, 250), variant="fraction_0.5", fraction=0.5)[1:]]
    rows = paired(runs)
    assert row(rows, "target_false_positives_excess", "suspect", "fraction_0.5").value == 150.0
    assert row(rows, "target_false_positives_excess", "suspect").value == 300.0
    own = paired([*runs, *arms((200,), variant="fraction_0.5")])
    assert row(own, "target_false_positives_excess", "suspect", "fraction_0.5").value == 50.0


def test_a_variant_trained_otherwise_does_not_borrow_the_control():
    side = arms((0, 250), variant="longer")[1]
    fit = side.run.train.fit.model_copy(update={"epochs": 999})
    side = dataclasses.replace(
        side, run=side.run.model_copy(update={"train": side.run.train.model_copy(update={"fit": fit})})
    )
    rows = paired([*arms((100, 400)), side])
    assert find(rows, "target_false_positives_excess", "suspect", *FP[1:], "longer") is None


def test_pairs_of_one_clean_trained_encoder_have_no_interval_of_a_difference():
    rows = paired(four_pairs())
    excess = row(rows, "target_false_positives_excess", "suspect")
    assert (excess.n, excess.num_trainings, excess.low, excess.p) == (4, 1, None, None)
    assert FEW_CONTROLS in excess.definition
    assert row(rows, "target_false_positives_removed_frac", "student").value is None
    assert row(rows, FP[0], "suspect").low is not None  # each pair poisons and trains anew
    apart = row(paired(own_seeds(CONTROL, STRONG)), "target_false_positives_excess", "suspect")
    assert (apart.num_trainings, apart.p < 0.01) == (4, True)


def test_the_noise_of_shared_encoders_is_in_an_interval_over_pairs():
    def excess(shift):
        runs = [
            one
            for pair in range(8)
            for seed in range(3)
            for one in arms((100 + shift * seed, 500 + 11 * pair + 7 * seed), trigger_seed=pair, seed=seed)
        ]
        return row(paired(runs), "target_false_positives_excess", "suspect")

    quiet, noisy = excess(7), excess(100)
    assert (quiet.num_units, quiet.num_trainings) == (8, 3)
    assert noisy.high - noisy.low > 2 * (quiet.high - quiet.low)


def test_the_specific_excess_is_a_paired_difference_of_differences():
    def encoder(arm, own, unseen, seed):
        rows = [(*FP, own), (FP[0], "unseen_trigger", FP[2], unseen)]
        return bare(arm, rows, seed=seed)

    runs = [
        encoder(arm, own + 10.0 * seed, unseen + 10.0 * seed + jitter * seed, seed)
        for seed in range(3)
        for arm, own, unseen, jitter in (("control", 100.0, 90.0, 0), ("suspect", 900.0, 700.0, 1))
    ]
    got = row(paired(runs), f"{FP[0]}_specific_excess", "suspect")
    assert got.value == pytest.approx((900 - 100) - (700 - 90) - 1)
    assert got.low < got.value < got.high
    assert got.p < 0.01


@pytest.mark.parametrize(
    ("metric", "low", "high"),
    [("accuracy", 0, 1), ("attack_success_rate", 0, 1), ("top_class_share", 0, 1), ("detection_auroc", 0, 1),
     ("target_false_positives", 0, 4000), ("similarity_triggered", -1, 1)],
)  # fmt: skip
def test_no_interval_leaves_what_is_possible(metric, low, high):
    values = [low + share * (high - low) for share in (0.02, 0.97, 1.0)]
    runs = [bare("suspect", [(metric, "triggered", "knn", v)], trigger_seed=i) for i, v in enumerate(values)]
    got = find(paired(runs), metric, "suspect", "triggered", "knn")
    assert low <= got.low < got.value < got.high <= high


def test_what_is_not_known_to_have_limits_has_no_interval():
    runs = [bare("suspect", [("my_metric", "triggered", "knn", float(v))], trigger_seed=v) for v in range(3)]
    got = find(paired(runs), "my_metric", "suspect", "triggered", "knn")
    assert (got.value, got.n, got.low) == (1.0, 3, None)


def test_values_that_are_not_finite_are_left_out_and_counted():
    runs = [one for i, v in enumerate((1.0, 3.0, float("nan"))) for one in arms((0.0, v), trigger_seed=i)]
    got = row(paired(runs), FP[0], "suspect")
    assert (got.value, got.n) == (2.0, 2)
    assert "1 run(s) without a finite value are left out" in got.definition


def test_the_single_run_interval_sentence_does_not_survive_aggregation():
    text = "Share of all n test images, right. Interval: Wilson 95 % over the n images."
    runs = arms((1, 2), trigger_seed=1) + arms((1, 3), trigger_seed=2)
    runs = [
        dataclasses.replace(one, measurements=one.measurements.set_column(7, "definition", [[text]])) for one in runs
    ]
    got = row(paired(runs), FP[0], "suspect").definition
    assert got.startswith("Share of all test images, right. Mean over 2")


def test_two_results_for_one_place_and_unknown_arms_are_refused():
    with pytest.raises(SpecError, match="two results for suspect, variant"):
        paired([*arms((1, 2)), arms((1, 3))[1]])
    with pytest.raises(SpecError, match="found 'teacher'"):
        paired([bare("teacher", [(*FP, 1.0)])])


def test_a_pair_ignores_the_poison_fraction_and_names_trigger_and_target():
    assert pair_of(run_spec(fraction=1.0)) == pair_of(run_spec(fraction=0.5))
    assert pair_of(run_spec()) != pair_of(run_spec(trigger_seed=12))
    assert pair_of(run_spec(target="frog")).label == "11 / frog"


def test_every_pair_is_listed_with_its_own_share_removed():
    results = paired([*four_pairs(), *arms((0, 7), trigger_seed=50, variant="side")])
    main, side = (cases_of(results, variant, MEASURE) for variant in ("", "side"))
    assert [pair.label for pair, _ in (*main, *side)] == ["11 / cat", "12 / cat", "13 / cat", "14 / cat", "50 / cat"]
    assert next(iter(main.values())) == (100.0, 1100.0, 300.0)


@pytest.mark.slow
def test_shown_probes_are_the_same_for_every_hash_seed():
    layers = [f"linear_layer{layer}_100" for layer in range(5)]
    script = f"from ssl_backdoor.report.frame import headline_probes; print(headline_probes({layers}))"
    told = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert told == {"('linear_layer4_100',)\n"}


def test_shown_probes_are_knn_and_the_linear_one_with_most_labels():
    names = ["linear_1", "linear_0.5", "linear_sgd_100", "linear_100", "knn", "features"]
    assert headline_probes(names) == ("knn", "linear_100")
    assert headline_probes(["linear_sgd_10", "linear_10"]) == ("linear_10",)
    assert headline_probes(["linear_adam_100", "linear_sgd_100", "linear_10"]) == ("linear_sgd_100",)
    layers = [f"linear_layer{layer}_{share}" for share in (10, 100) for layer in range(12)]
    assert headline_probes([*layers, "linear_100"]) == ("linear_100",)
    assert headline_probes(layers) == ("linear_layer11_100",)
    assert headline_probes(["features"]) == ()


def test_json_measurements_hold_null_and_suffix_side_variants():
    records = [row.record() for row in paired([*arms((10, 40, 20)), *arms((0, 5), variant="fraction_0.5")[1:]]).rows]
    wanted = {"name", "arm", "condition", "probe", "value", "n", "low", "high", "definition", "variant"}
    assert wanted <= set(records[0])
    assert {"control", "suspect", "student", "suspect[fraction_0.5]"} <= {record["arm"] for record in records}
    assert records[0]["low"] is None


@pytest.fixture(scope="module")
def fake_rows():
    return paired(ten_pairs(num_test=200))


def test_every_measurement_of_every_arm_has_a_row(fake_rows):
    for arm in ("control", "suspect", "student", "distilled_control"):
        assert find(fake_rows, "z_score_sd", arm, "triggered", "features") is not None
        assert find(fake_rows, "false_positives:cat", arm, "clean", "linear_10") is not None
    assert len({row.key for row in fake_rows.rows}) == len(fake_rows.rows)


def test_one_encoder_for_all_pairs_has_no_interval_between_them():
    runs = [one for i in range(3) for one in arms((100, 200 + i), trigger_seed=i)]
    got = row(paired(runs), FP[0], "control")
    assert (got.value, got.n, got.low, got.high, got.interval) == (100.0, 3, None, None, "none")
    assert FEW_CONTROLS in got.definition
