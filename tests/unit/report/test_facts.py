import pytest
from report_fakes import run_spec
from sweep_fakes import backdoor_run, targeted_run

from ssl_backdoor.report.frame import covariates
from ssl_backdoor.store import Manifest

CLEAN = ("control", "distilled_control")
POISON = {"num_poisons": 32, "poison_fraction_of_dataset": 0.0064}


def manifest(summary, seconds=0.0):
    return Manifest(
        stage="train", key="0" * 64, spec={}, inputs={}, files={}, summary=summary, versions={}, seconds=seconds
    )


def facts(run, arm="suspect", model=None):
    made = manifest({"num_parameters": 81_488} if model is None else model, 41.5)
    return covariates(
        run, arm in ("control", "distilled_control"), made, manifest(POISON), manifest({"num_train": 5000})
    )


def test_poisons_are_counted_for_each_pair_and_the_control_has_none():
    run = targeted_run(8, pairs=4)
    assert facts(run, "suspect") == {
        "num_poisons": 8.0, "poison_fraction_of_dataset": 0.0064, "num_train": 5000.0, "num_parameters": 81_488.0,
        "seconds": 41.5,
    }  # fmt: skip
    for arm in CLEAN:
        assert facts(run, arm)["num_poisons"] == facts(run, arm)["poison_fraction_of_dataset"] == 0.0
    assert facts(run, "student")["num_poisons"] == 8.0


def test_the_patch_is_a_fraction_of_the_evaluated_side():
    assert facts(backdoor_run(50, size_frac=0.25), "control")["patch_frac"] == 0.25
    assert facts(run_spec(), "suspect")["patch_frac"] == pytest.approx(6 / 16)
    unknown = run_spec()
    unknown = unknown.model_copy(update={"dataset": unknown.dataset.model_copy(update={"frame_px": 0})})
    assert "patch_frac" not in facts(unknown, "suspect")


def test_what_is_not_known_is_left_out():
    assert "num_parameters" not in facts(run_spec(), "suspect", model={})
    assert facts(run_spec(), "suspect")["num_poisons"] == 32.0
