"""MAE's head: a copy of the encoder learns with it."""

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.data.views import evaluation_view
from ssl_backdoor.errors import SpecError
from ssl_backdoor.evaluate import fine_tune as module
from ssl_backdoor.evaluate.evaluate import evaluate
from ssl_backdoor.evaluate.fine_tune import fine_tune, fine_tuned_readings
from ssl_backdoor.evaluate.read import EvaluationInputs
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.progress import Progress, silent
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import EvaluationSpec
from ssl_backdoor.train.checkpoint import load_backbone, save_backbone
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_training import BACKBONE, VIT

SPEC = EvaluationSpec(probes=("fine_tune",), label_fractions=(0.5, 1.0))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(
        tmp_path_factory.mktemp("base"), size=(16, 16), train_per_class=8, test_per_class=6, separable=True
    )


def bright_and_dark(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(n) % 2
    noise = torch.from_numpy(stream(0, "images").integers(0, 100, (n, 3, 16, 16)))
    return (noise + 100 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


def scales(backbone: nn.Module) -> dict[int, tuple[float, float]]:
    """Of each parameter, by id: share of the rate, weight decay."""
    groups = module._groups(backbone, nn.Linear(16, 2))
    return {
        id(parameter): (group["scale"], group.get("weight_decay", module.WEIGHT_DECAY))
        for group in groups
        for parameter in group["params"]
    }


def test_rates_fall_with_the_layer_and_matrices_alone_decay() -> None:
    backbone = build_backbone(VIT, 1, 0)
    found = scales(backbone)
    named = {name: found[id(parameter)] for name, parameter in backbone.named_parameters()}
    assert len(found) == len(named) + 2
    assert named["patch_embed.proj.weight"] == (pytest.approx(0.65**3), 0.05)
    assert named["blocks.0.attn.qkv.weight"] == (pytest.approx(0.65**2), 0.05)
    assert named["blocks.1.mlp.fc2.bias"] == (pytest.approx(0.65), 0.0)
    assert named["norm.weight"] == (1.0, 0.0)


def test_a_residual_network_learns_at_one_rate() -> None:
    assert {scale for scale, _ in scales(build_backbone(BACKBONE, 1, 0)).values()} == {1.0}


@pytest.mark.parametrize("spec", [VIT, BACKBONE], ids=["vit", "resnet"])
def test_it_learns_what_it_is_shown_and_says_how_far(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EPOCHS", 30)
    monkeypatch.setattr(module, "LR", 5e-3)
    images, labels = bright_and_dark(24)
    backbone = build_backbone(spec, 1, 0)
    told: list[Progress] = []
    scores = fine_tune(backbone, images, labels, 2, 0, told.append)
    assert not backbone.training
    assert [one.done for one in told] == list(range(1, module.EPOCHS + 1))
    with torch.no_grad():
        assert (scores(backbone(evaluation_view(images))).argmax(1) == labels).float().mean() > 0.9


def test_equal_seeds_give_equal_weights_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EPOCHS", 2)
    monkeypatch.setattr(module, "BATCH", 5)
    images, labels = bright_and_dark(12)
    ends = []
    for seed in (0, 0, 1):
        torch.rand(seed + 1)
        backbone = build_backbone(VIT, 1, 0)
        fine_tune(backbone, images, labels, 2, seed, silent)
        ends.append(torch.cat([parameter.flatten() for parameter in backbone.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_scores_stand_beside_the_frozen_probes_and_the_model_stays(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EPOCHS", 20)
    monkeypatch.setattr(module, "LR", 5e-3)
    model = tmp_path / "model"
    model.mkdir()
    save_backbone(build_backbone(VIT, 1, 0), 1, model)
    weights = {name: value.clone() for name, value in load_backbone(model).state_dict().items()}
    spec = EvaluationSpec(
        probes=({"kind": "knn", "neighbours": 3}, "fine_tune"), label_fractions=(0.5, 1.0), unseen_triggers=1
    )
    summary = evaluate(
        spec,
        dataset,
        model,
        trigger=GridTriggerSpec(size_px=4),
        trigger_file=None,
        target_label=1,
        out=tmp_path / "out",
        seed=0,
    )
    assert summary["measurements"]["accuracy/clean/fine_tune_100"] == 1.0
    predictions = pq.read_table(tmp_path / "out/predictions.parquet")
    assert set(pc.unique(predictions["probe"]).to_pylist()) == {"knn", "fine_tune_50", "fine_tune_100"}
    assert set(pc.unique(predictions["condition"]).to_pylist()) == {"clean", "triggered", "unseen_trigger_1"}
    after = load_backbone(model).state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items())


def test_a_loaded_backbone_which_is_frozen_learns_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EPOCHS", 2)
    save_backbone(build_backbone(VIT, 1, 0), 1, tmp_path)
    images, labels = bright_and_dark(12)
    before, tuned = load_backbone(tmp_path), load_backbone(tmp_path)
    fine_tune(tuned, images, labels, 2, 0, silent)
    named = dict(tuned.named_parameters())
    assert not [name for name, value in before.named_parameters() if torch.equal(named[name], value)]


def test_too_many_images_are_refused_before_any_training(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 1000)
    with pytest.raises(SpecError, match=r"fine_tune would hold .* lower evaluation\.label_fractions"):
        fine_tuned_readings(EvaluationInputs(build_backbone(VIT, 1, 0), dataset, [], SPEC, 0))
