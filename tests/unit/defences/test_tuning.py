"""PAR's objective against slow NumPy, and both repairs that train the towers on, from suspect to files."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssl_backdoor.defences.fine_tuning import FineTuningSpec
from ssl_backdoor.defences.par import PARSpec
from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.base import SingleProcess
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.clip import clip_loss
from ssl_backdoor.methods.par import PAR
from ssl_backdoor.progress import silent
from ssl_backdoor.specs import AdamWSpec, CosineSpec, FitSpec, ResNetSpec, Resources, StageContext, ViewsSpec
from ssl_backdoor.train.checkpoint import NoCheckpoints, save_backbone
from tests.support.tiny_defences import pairs, save_clip
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_towers import tiny_towers

torch.set_num_threads(1)
FIT = FitSpec(
    epochs=1,
    batch_size=8,
    views=ViewsSpec(size_px=12),
    optimizer=AdamWSpec(lr=1e-3),
    schedule=CosineSpec(per="step"),
)


def moved(tau: float) -> PAR:
    """The towers of another seed next to the suspect of this one; all in eval mode, so that rows do not mix."""
    method = PAR(tau, *tiny_towers(1), SingleProcess())
    method.backbone, method.text = (tower.requires_grad_(True) for tower in tiny_towers(2))
    return method.eval()


def units(tower: torch.nn.Module, rows: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        found = copy.deepcopy(tower)(rows).double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_the_loss_is_that_of_the_formula_and_a_distance_beyond_tau_pushes_no_farther() -> None:
    method = moved(4.0)
    batch = pairs(1, method.text_tower)
    assert batch.tokens is not None
    distances = [
        np.mean([np.sum((a - b) ** 2) for a, b in zip(units(tower, rows), units(frozen, rows), strict=True)])
        for tower, frozen, rows in zip(
            (method.backbone, method.text), method.suspect, (batch.views[0], batch.tokens), strict=True
        )
    ]
    image, text = (
        torch.from_numpy(units(tower, rows)).float()
        for tower, rows in ((method.backbone, batch.views[0]), (method.text, batch.tokens))
    )
    with torch.no_grad():
        cross_modal = float(clip_loss(image, text, method.text.logit_scale.exp(), SingleProcess()))
    assert distances[0] != pytest.approx(distances[1], abs=1e-3)
    for tau, counted in (
        (4.0, sum(distances)),
        (0.0001, 0.0),
        (sum(distances) / 2, min(distances)),
    ):
        method.tau = tau
        output = method.loss(batch)
        assert output.loss.item() == pytest.approx(cross_modal - counted / 2, rel=1e-4)
        assert output.logs["distance_image"].item() == pytest.approx(distances[0], rel=1e-4)


def test_the_suspect_stays_and_the_scale_is_not_trained() -> None:
    method = PAR(2.15, *(tower.requires_grad_(True) for tower in tiny_towers(1)), SingleProcess()).train()
    before = [copy.deepcopy(tower.state_dict()) for tower in method.suspect]
    names = {name for name, one in method.named_parameters() if one.requires_grad}
    assert "text.logit_scale" not in names
    assert not any(name.startswith("suspect") for name in method.state_dict())
    method.loss(pairs(1, method.text_tower)).loss.backward()
    assert all(one.grad is not None for name, one in method.named_parameters() if name.startswith("backbone"))
    for tower, state in zip(method.suspect, before, strict=True):
        assert not tower.training
        assert all(torch.equal(value, state[name]) for name, value in tower.state_dict().items())


def test_the_gradient_pushes_away_from_the_suspect() -> None:
    """One step down the loss's gradient without CLIP's part takes the image embeddings farther away."""
    method = moved(4.0)
    batch = pairs(1, method.text_tower)
    output = method.loss(batch)
    pushed = output.loss - clip_loss(
        *(torch.nn.functional.normalize(tower(rows).float(), dim=1)
          for tower, rows in ((method.backbone, batch.views[0]), (method.text, batch.tokens))),
        method.text.logit_scale.exp(),
        SingleProcess(),
    )  # fmt: skip
    pushed.backward()
    with torch.no_grad():
        for one in method.backbone.parameters():
            if one.grad is not None:
                one.sub_(0.01 * one.grad / (one.grad.norm() + 1e-12))
    assert method.loss(batch).logs["distance_image"] > output.logs["distance_image"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_dataset(tmp_path_factory.mktemp("data"), train_per_class=14, size=(12, 12))


def run(spec: Any, dataset: Any, suspect: Path, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True)
    return spec.repair(dataset, suspect, StageContext(out, 0, Resources(device="cpu"), NoCheckpoints(), silent))


@pytest.mark.parametrize("spec", [FineTuningSpec, PARSpec])
def test_both_towers_are_trained_on_from_the_suspect_s(dataset: Any, tmp_path: Path, spec: Any) -> None:
    suspect = save_clip(tmp_path / "suspect")
    for lr, stays in ((1e-9, True), (1e-2, False)):
        fit = FIT.model_copy(update={"optimizer": AdamWSpec(lr=lr, weight_decay=0.0)})
        summary = run(spec(trusted_fraction=0.5, fit=fit), dataset, suspect, tmp_path / f"{stays}")
        assert (summary["num_trusted"], summary["steps"]) == (21, 2)
        for file in ("backbone.safetensors", "text.safetensors"):
            old, new = load_file(suspect / file), load_file(tmp_path / f"{stays}" / file)
            weights = [name for name, value in old.items() if value.ndim >= 2]
            assert all(torch.allclose(new[name], old[name], atol=1e-6) for name in weights) == stays
    scale = [load_file(folder / "text.safetensors")["logit_scale"] for folder in (suspect, tmp_path / "False")]
    assert (scale[0] == scale[1]) == (spec is PARSpec)


@pytest.mark.parametrize("spec", [FineTuningSpec, PARSpec])
def test_a_suspect_that_is_no_clip_is_refused(dataset: Any, tmp_path: Path, spec: Any) -> None:
    (tmp_path / "resnet").mkdir()
    save_backbone(build_backbone(ResNetSpec(depth=8, width=4, stem="small"), 1, 0), 1, tmp_path / "resnet")
    with pytest.raises(SpecError, match=f"the defence {spec().kind} needs the two towers of a CLIP model"):
        run(spec(trusted_fraction=0.5, fit=FIT), dataset, tmp_path / "resnet", tmp_path / "out")
