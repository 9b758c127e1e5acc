import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from ssl_backdoor.errors import CheckpointError
from ssl_backdoor.methods.base import SSLMethod
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.clip_towers import build_towers
from ssl_backdoor.specs import AdamSpec, AdamWSpec, ResNetSpec, SGDSpec
from ssl_backdoor.train.checkpoint import (
    load_backbone,
    load_text_tower,
    restore,
    save_backbone,
    save_text_tower,
    training_state,
)
from ssl_backdoor.train.curves import Curves
from ssl_backdoor.train.optim import build_optimizer
from tests.support.tiny_training import TOWERS, objective, random_batch

SPEC = ResNetSpec(depth=10, width=8, stem="small")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    backbone = build_backbone(SPEC, 4, 0).to(memory_format=torch.channels_last)
    backbone.train()(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    save_backbone(backbone, 4, tmp_path)
    return tmp_path


def test_backbone_comes_back_in_eval_mode_and_equal(folder: Path) -> None:
    loaded = load_backbone(folder)
    assert loaded.spec == SPEC
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    saved = load_file(folder / "backbone.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    assert json.loads((folder / "backbone.json").read_text()) == {
        "backbone": {"kind": "resnet", "depth": 10, "stem": "small", "width": 8},
        "bn_groups": 4,
    }


def test_missing_files(folder: Path) -> None:
    (folder / "backbone.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected the weights backbone\.safetensors"):
        load_backbone(folder)
    with pytest.raises(CheckpointError, match=r"expected backbone\.json in"):
        load_backbone(folder / "nowhere")


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated(folder: Path, size: int) -> None:
    file = folder / "backbone.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_backbone(folder)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_is_refused_unread(folder: Path, legacy: bool) -> None:
    state = build_backbone(SPEC, 1, 0).state_dict()
    torch.save(state, folder / "backbone.safetensors", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_backbone(folder)


def test_tensors_that_do_not_fit(folder: Path) -> None:
    file = folder / "backbone.safetensors"
    weights = load_file(file)
    save_file({**weights, "conv1.weight": weights["conv1.weight"][:4].clone()}, file)
    with pytest.raises(CheckpointError, match=r"conv1.weight should be torch.float32 \(8, 3, 3, 3\), found .*\(4, 3"):
        load_backbone(folder)
    save_file({**weights, "conv1.weight": weights["conv1.weight"].long()}, file)
    with pytest.raises(CheckpointError, match=r"found torch.int64"):
        load_backbone(folder)
    del weights["bn1.bias"]
    save_file({**weights, "fc.weight": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"missing are \['bn1.bias'\].*unknown are \['fc.weight'\]"):
        load_backbone(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"backbone": {"depth": 19}}', "\x80"])
def test_a_description_that_is_none(folder: Path, text: str) -> None:
    (folder / "backbone.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="does not describe a backbone"):
        load_backbone(folder)


def stepped(method: SSLMethod, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        method.loss(random_batch(method, step)).loss.backward()
        optimizer.step()
        method.after_step(step / 10)


@pytest.fixture
def towers(tmp_path: Path) -> Path:
    image, text = build_towers(TOWERS, 3)
    save_backbone(image, 1, tmp_path)
    save_text_tower(text, tmp_path)
    return tmp_path


def test_towers_come_back_in_eval_mode_and_equal(towers: Path) -> None:
    for loaded, saved in zip((load_backbone(towers), load_text_tower(towers)), build_towers(TOWERS, 3), strict=True):
        assert type(loaded) is type(saved)
        assert loaded.spec == TOWERS
        assert not any(part.training for part in loaded.modules())
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        assert all(torch.equal(value, saved.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert json.loads((towers / "text.json").read_text()) == {"text": {"kind": "open_clip", "config": TOWERS.config}}


def test_hostile_text_towers(towers: Path) -> None:
    file = towers / "text.safetensors"
    whole = file.read_bytes()
    weights = {name: value.clone() for name, value in load_file(file).items()}
    torch.save(weights, file)
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_text_tower(towers)
    file.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_text_tower(towers)
    save_file({**weights, "logit_scale": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"logit_scale should be torch.float32 \(\), found .*\(2,\)"):
        load_text_tower(towers)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"expected the weights text\.safetensors"):
        load_text_tower(towers)
    (towers / "text.json").unlink()
    with pytest.raises(CheckpointError, match=r"expected text\.json in"):
        load_text_tower(towers)


@pytest.mark.parametrize("text", ["", '{"text": {"kind": "resnet"}}', '{"text": {"config": "../../etc/passwd"}}'])
def test_a_text_description_that_is_none(towers: Path, text: str) -> None:
    (towers / "text.json").write_text(text)
    with pytest.raises(CheckpointError, match="does not describe a text tower"):
        load_text_tower(towers)


def test_a_configuration_that_open_clip_lacks(towers: Path) -> None:
    (towers / "backbone.json").write_text('{"backbone": {"kind": "open_clip", "config": "RN51"}}')
    with pytest.raises(CheckpointError, match=r"names a network that cannot be built: .*'RN51'; near it are RN50"):
        load_backbone(towers)


@pytest.mark.parametrize("spec", [SGDSpec(), AdamSpec(), AdamWSpec()])
def test_training_state_restores_weights_queue_and_optimizer(spec: SGDSpec | AdamSpec | AdamWSpec) -> None:
    methods, optimizers = [], []
    for _ in range(2):
        methods.append(objective("moco_v2").to(memory_format=torch.channels_last))
        optimizers.append(build_optimizer(spec, [p for p in methods[-1].parameters() if p.requires_grad]))
    stepped(methods[0], optimizers[0], range(3))
    state = training_state(methods[0], optimizers[0], 3, {"steps": torch.tensor([1, 2])})
    restored = restore(state, methods[1], optimizers[1], num_steps=6)
    assert restored.step == 3
    assert restored.extra["steps"].tolist() == [1, 2]
    for method, optimizer in zip(methods, optimizers, strict=True):
        stepped(method, optimizer, range(3, 6))
    for name, value in methods[0].state_dict().items():
        assert torch.equal(value, methods[1].state_dict()[name]), name


def test_a_state_of_another_kind(folder: Path) -> None:
    method = objective("byol")
    optimizer = build_optimizer(SGDSpec(), [p for p in method.parameters() if p.requires_grad])
    with pytest.raises(CheckpointError, match="of another kind"):
        restore((folder / "backbone.safetensors").read_bytes(), method, optimizer, 9)
    other = objective("moco_v2")
    state = training_state(other, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), 1, {})
    with pytest.raises(CheckpointError, match="does not fit the network"):
        restore(state, method, optimizer, 9)


TAMPERED: dict[str, tuple[str, Callable[[dict[str, Tensor]], object]]] = {
    "shape": (
        r"expected finite numbers of shape \(.+\) for exp_avg",
        lambda t: t.update({"optimizer.0.exp_avg": torch.zeros(2)}),
    ),
    "endless": ("expected finite numbers", lambda t: t["optimizer.1.exp_avg_sq"].fill_(torch.inf)),
    "kind": ("expected finite numbers", lambda t: t.update({"optimizer.0.step": torch.tensor(3)})),
    "missing": ("expected exp_avg, exp_avg_sq, step, found exp_avg_sq, step", lambda t: t.pop("optimizer.0.exp_avg")),
    "unknown": ("expected exp_avg, exp_avg_sq, step, found", lambda t: t.update({"optimizer.0.extra": torch.zeros(2)})),
    "index": ("of another kind", lambda t: t.update({"optimizer.-1.step": torch.tensor(3.0)})),
    "far index": ("of another kind", lambda t: t.update({f"optimizer.{10**30}.step": torch.tensor(3.0)})),
    "no number": ("of another kind", lambda t: t.update({"optimizer.first.step": torch.tensor(3.0)})),
}


@pytest.mark.parametrize("step", ["-5", "10", f"1{'0' * 30}", f"1{'0' * 5000}", "NaN", ""])
def test_a_step_that_the_training_does_not_have(step: str) -> None:
    method, optimizer, state = stepped_state()
    with pytest.raises(CheckpointError, match=r"after 0 to 9 steps|of another kind"):
        restore(save(state, {"step": step}), method, optimizer, 9)


@pytest.mark.parametrize("case", TAMPERED)
def test_an_optimiser_state_that_was_altered(case: str) -> None:
    method, optimizer, state = stepped_state()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    words, alter = TAMPERED[case]
    alter(state)
    with pytest.raises(CheckpointError, match=words):
        restore(save(state, {"step": "3"}), method, optimizer, 9)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_curves_that_were_altered() -> None:
    for tensors in ({}, {"steps": torch.zeros(2, 2)}, {"steps": torch.zeros(2), "curve.loss": torch.zeros(3)}):
        with pytest.raises(CheckpointError, match="are no curves"):
            Curves(9, 3).restore(tensors)


def stepped_state() -> tuple[SSLMethod, torch.optim.Optimizer, dict[str, Tensor]]:
    """A training of Adam, and the tensors of its state after three steps."""
    method = objective("simsiam")
    optimizer = build_optimizer(AdamSpec(), [p for p in method.parameters() if p.requires_grad])
    stepped(method, optimizer, range(3))
    return method, optimizer, load(training_state(method, optimizer, 3, {"x": torch.zeros(2)}))


def test_a_giant_is_refused_by_the_size_of_its_weights_before_it_is_made(tmp_path, monkeypatch):
    spec = {"kind": "resnet", "depth": 50, "width": 512}
    (tmp_path / "backbone.json").write_text(json.dumps({"backbone": spec, "bn_groups": 1}))
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "backbone.safetensors")
    monkeypatch.setattr("ssl_backdoor.train.checkpoint.build_backbone", None)
    with pytest.raises(CheckpointError, match=r"does not fit the network: expected at least \d{10} bytes, found"):
        load_backbone(tmp_path)
