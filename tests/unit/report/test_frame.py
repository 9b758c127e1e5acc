import math

import pandas as pd
import pytest
from report_fakes import bare
from sweep_fakes import RATE, backdoor_sweep

from ssl_backdoor.report.estimates import paired, swept
from ssl_backdoor.report.frame import ARMS, FRAME, Arm, probe_of, tidy

FP = ("target_false_positives", "triggered", "linear_layer2_10")


@pytest.fixture(scope="module")
def frames():
    models = [
        bare(arm, [(*FP, value), ("false_positives:cat", "clean", "knn", 3.0)], trigger_seed=seed)
        for seed in (11, 12)
        for arm, value in (("control", 100.0), ("suspect", 500.0), ("student", 200.0))
    ]
    one, two = paired(models), swept([RATE], backdoor_sweep())
    return [tidy(name, results.models, results.frame) for name, results in (("pairs", one), ("sweep", two))]


def test_frames_of_two_reports_can_be_concatenated(frames):
    both = pd.concat(frames, ignore_index=True)
    assert list(both) == FRAME.names
    assert set(both.recipe) == {"pairs", "sweep"}
    assert set(zip(both.trained_on, both.defence, strict=True)) == {
        ("clean", ""), ("poisoned", ""), ("poisoned", "compress"), ("poisoned", "cleanclip"), ("clean", "cleanclip")
    }  # fmt: skip


def test_excess_and_share_removed_are_rows_of_each_encoder(frames):
    rows = frames[0][frames[0].metric == "target_false_positives"]
    student = rows[(rows.defence == "compress") & (rows.pair == "11 / cat")].set_index("statistic").value
    assert student.to_dict() == {"value": 200.0, "excess": 100.0}
    assert set(rows[rows.arm == "control"].statistic) == {"value"}
    assert set(rows[(rows.trained_on == "poisoned") & (rows.defence == "")].statistic) == {"value", "excess"}


def test_names_are_read_into_columns(frames):
    row = frames[0][frames[0].metric == "false_positives"].iloc[0]
    assert (row["class"], row.probe_family) == ("cat", "knn")
    row = frames[0][frames[0].metric == "target_false_positives"].iloc[0]
    assert (row.probe_family, row.label_frac, row.layer) == ("linear_layer", 0.1, 2)
    assert (row.target, row.method, row.attack) == ("cat", "byol", "saha2022_targeted")
    assert math.isnan(row.poison_fraction_of_pairs)


def test_an_encoder_that_several_runs_list_is_there_once(frames):
    controls = frames[1][(frames[1].arm == "control") & (frames[1].metric == "z_score_sd")]
    assert len(controls) == 3
    assert set(controls.num_poisons) == {0.0}


@pytest.mark.parametrize("name", ARMS)
def test_arms_are_spelled_as_they_are_read(name):
    assert Arm.named(name, "compress").name == name


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("knn", ("knn", None, None)),
        ("zero_shot", ("zero_shot", None, None)),
        ("linear_100", ("linear", 1.0, None)),
        ("linear_sgd_0.5", ("linear_sgd", 0.005, None)),
        ("fine_tune_1", ("fine_tune", 0.01, None)),
        ("features", ("features", None, None)),
    ],
)
def test_probes_tell_family_and_labels(name, parts):
    assert probe_of(name) == parts
