"""Probes on a frozen vision transformer, at the side of its training and at another."""

from pathlib import Path
from typing import Any

import pytest

from ssl_backdoor.errors import SpecError
from ssl_backdoor.evaluate.evaluate import evaluate
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.specs import EvaluationSpec
from ssl_backdoor.train.checkpoint import save_backbone
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_training import VIT

TRIGGER = GridTriggerSpec(size_px=4)


def measure(folder: Path, **changes: int) -> dict[str, float]:
    dataset = tiny_dataset(folder / "data", size=(16, 16), train_per_class=8, test_per_class=6, separable=True)
    model = folder / "model"
    model.mkdir()
    save_backbone(build_backbone(VIT, 1, 0), 1, model)
    spec = EvaluationSpec(probes=({"kind": "knn", "neighbours": 3}, "linear"), label_fractions=(1.0,), **changes)
    arguments: dict[str, Any] = {"trigger": TRIGGER, "trigger_file": None, "target_label": 1, "seed": 0}
    summary = evaluate(spec, dataset, model, out=folder / "out", **arguments)
    values: dict[str, float] = summary["measurements"]
    return values


@pytest.mark.parametrize("crop_px", [0, 12])
def test_probes_find_what_is_there(tmp_path: Path, crop_px: int) -> None:
    values = measure(tmp_path, crop_px=crop_px)
    assert values["accuracy/clean/knn"] == values["accuracy/clean/linear_100"] == 1.0
    assert {name.split("/")[1] for name in values} >= {"clean", "triggered", "unseen_trigger"}


def test_a_frame_that_the_patch_does_not_divide(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"found 14 x 14 px; set fit\.views\.size_px and evaluation\.crop_px"):
        measure(tmp_path, crop_px=14)
