"""Weights on disk: the state of a training that is to be resumed, and the networks that a training made.

Both are safetensors: tensors and text, nothing that could run. No pickle is read or written anywhere.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, final

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ssl_backdoor.errors import CheckpointError, SpecError
from ssl_backdoor.identity import canonical_json
from ssl_backdoor.methods.base import SSLMethod
from ssl_backdoor.methods.build import Backbone, build_backbone, num_weight_bytes
from ssl_backdoor.methods.clip_towers import TextTower, build_towers, load_open_clip, tower_config
from ssl_backdoor.specs import BackboneSpec, OpenCLIPSpec

BACKBONE_WEIGHTS = "backbone.safetensors"
BACKBONE_JSON = "backbone.json"
TEXT_WEIGHTS = "text.safetensors"
TEXT_JSON = "text.json"
_BACKBONE_SPEC: TypeAdapter[BackboneSpec] = TypeAdapter(BackboneSpec)
_TEXT_SPEC: TypeAdapter[OpenCLIPSpec] = TypeAdapter(OpenCLIPSpec)
SpecT = TypeVar("SpecT")


class Checkpoints(Protocol):
    """Where a training keeps its state."""

    def save(self, step: int, file: Path) -> None:
        """Keep a copy of ``file``: the state after ``step`` steps."""

    def load(self) -> tuple[int, Path] | None:
        """The newest state and its number of steps, or None."""


@final
class NoCheckpoints:
    """Nothing is kept: for notebooks and short runs."""

    def save(self, step: int, file: Path) -> None:
        """Do nothing."""

    def load(self) -> tuple[int, Path] | None:
        """None: nothing was kept."""
        return None


# ------------------------------------------------------------------------------------------- state of a training


def training_state(
    method: SSLMethod, optimizer: torch.optim.Optimizer, step: int, extra: Mapping[str, Tensor]
) -> bytes:
    """The whole state after ``step`` steps as one safetensors file.

    Tensors are named ``method.<name>``, ``optimizer.<parameter index>.<name>`` and ``extra.<name>``; the step is in the
    header. There is no random state and no data position: both follow from seed and step.
    """
    tensors = {f"method.{name}": value for name, value in method.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None}
    tensors |= {f"extra.{name}": value for name, value in extra.items()}
    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {"step": str(step)})


class Restored(NamedTuple):
    """The contents of a training state besides the networks."""

    step: int
    """Steps done."""
    extra: dict[str, Tensor]


def restore(data: bytes, method: SSLMethod, optimizer: torch.optim.Optimizer, num_steps: int) -> Restored:
    """Put the state in ``data`` back into ``method`` and ``optimizer`` of a training of ``num_steps`` steps.

    Raises:
        CheckpointError: ``data`` is not such a state, or it belongs to another method, architecture or optimiser, or
            to a step that this training does not have.
    """
    origin = "the training checkpoint"
    parts: dict[str, dict[str, Tensor]] = {"method": {}, "optimizer": {}, "extra": {}}
    every = (parameter for group in optimizer.param_groups for parameter in group["params"])
    parameters = dict(enumerate(every))
    state: dict[int, dict[str, Tensor]] = {}
    tensors = _parse(data, origin)
    try:
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        for name, value in parts["optimizer"].items():
            index, _, key = name.partition(".")
            parameter = parameters[int(index)]
            # The memory layout must be the parameter's, as it was: fused kernels walk both alike.
            fits = value.shape == parameter.shape
            state.setdefault(int(index), {})[key] = torch.empty_like(parameter).copy_(value) if fits else value
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        step = int(header["__metadata__"]["step"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{origin} is a safetensors file of another kind; remove it and train anew") from error
    if not 0 <= step <= num_steps:
        raise CheckpointError(
            f"expected {origin} after 0 to {num_steps:,} steps, found {str(step)[:40]}; remove it and train anew"
        )
    for number, values in state.items():
        _check_optimizer_state(optimizer, values, parameters[number], f"{origin}, optimiser state {number}")
    _load_weights(method, parts["method"], origin)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Restored(step, parts["extra"])


def _check_optimizer_state(
    optimizer: torch.optim.Optimizer, values: Mapping[str, Tensor], parameter: Tensor, origin: str
) -> None:
    """Refuse what the optimiser would fail on at its next step, or take for numbers of its own."""
    expected = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    if values.keys() != expected:
        raise CheckpointError(
            f"{origin}: expected {', '.join(sorted(expected))}, found {', '.join(sorted(values))[:200]}; remove it and "
            "train anew"
        )
    for name, value in values.items():
        shape = torch.Size() if name == "step" else parameter.shape
        if value.shape != shape or not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{origin}: expected finite numbers of shape {tuple(shape)} for {name}, found {value.dtype} "
                f"{tuple(value.shape)}; remove it and train anew"
            )


# ------------------------------------------------------------------------------------------- backbone and text tower


def save_backbone(backbone: Backbone, bn_groups: int, folder: Path) -> None:
    """Write ``backbone.safetensors`` (a ResNet's with torchvision's names) and ``backbone.json``.

    The latter holds its spec and the global ``bn_groups``.
    """
    _save_network(backbone, folder / BACKBONE_WEIGHTS)
    text = canonical_json({"backbone": backbone.spec, "bn_groups": bn_groups})
    (folder / BACKBONE_JSON).write_text(text + "\n", encoding="utf-8")


def save_text_tower(text: TextTower, folder: Path) -> None:
    """Write ``text.safetensors``, the scale among it, and ``text.json`` (its spec)."""
    _save_network(text, folder / TEXT_WEIGHTS)
    (folder / TEXT_JSON).write_text(canonical_json({"text": text.spec}) + "\n", encoding="utf-8")


def load_backbone(folder: Path) -> Backbone:
    """The backbone in ``folder``, on the CPU, in eval mode, without gradient.

    Raises:
        CheckpointError: A file is missing, truncated, a pickle, or its tensors do not fit the described network.
        SpecError: It is a tower of CLIP and open_clip is missing, or a vision transformer and timm is.
    """
    spec = backbone_spec(folder)
    weights = _read_weights(folder / BACKBONE_WEIGHTS, num_weight_bytes(spec))
    backbone = build_backbone(spec, 1, 0)
    _load_network(backbone, weights, folder / BACKBONE_WEIGHTS)
    return backbone


def load_text_tower(folder: Path) -> TextTower:
    """The text tower next to the backbone in ``folder``; as ``load_backbone``."""
    spec = _read_spec(folder / TEXT_JSON, "text", _TEXT_SPEC)
    weights = _read_weights(folder / TEXT_WEIGHTS, num_weight_bytes(spec, "text"))
    text = build_towers(spec, 0)[1]
    _load_network(text, weights, folder / TEXT_WEIGHTS)
    return text


def backbone_spec(folder: Path) -> BackboneSpec:
    """What ``backbone.json`` in ``folder`` says the network is.

    Raises:
        CheckpointError: The file is missing or does not describe a network.
    """
    return _read_spec(folder / BACKBONE_JSON, "backbone", _BACKBONE_SPEC)


def _read_spec(file: Path, name: str, kind: TypeAdapter[SpecT]) -> SpecT:
    try:
        spec = kind.validate_python(json.loads(file.read_bytes())[name])
    except OSError as error:
        raise CheckpointError(
            f"expected {file.name} in {file.parent}, but it cannot be read ({error.strerror}); "
            "give the folder of a finished training"
        ) from error
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        what = "text tower" if name == "text" else name
        raise CheckpointError(f"{file} does not describe a {what}; train it again or restore the file") from error
    if isinstance(spec, OpenCLIPSpec):
        load_open_clip()
        try:
            tower_config(spec.config)
        except SpecError as error:
            raise CheckpointError(f"{file} names a network that cannot be built: {error}") from error
    return spec


def _save_network(network: nn.Module, file: Path) -> None:
    # Not save_file: its error for a full disk is not an OSError.
    file.write_bytes(save({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}))


def _read_weights(file: Path, num_bytes: int) -> dict[str, Tensor]:
    """The tensors in ``file``, for a network of ``num_bytes``, which is not made where the file is too small for it."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"expected the weights {file.name} in {file.parent}, but they cannot be read ({error.strerror}); "
            "give the folder of a finished training"
        ) from error
    weights = _parse(data, str(file))
    if len(data) < num_bytes:
        raise CheckpointError(
            f"{file} does not fit the network: expected at least {num_bytes} bytes, found {len(data)}; "
            "use the network it was made with"
        )
    return weights


def _load_network(network: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    _load_weights(network, weights, str(file))
    network.eval().requires_grad_(False)


def _parse(data: bytes, origin: str) -> dict[str, Tensor]:
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        if data.startswith((b"PK\x03\x04", b"\x80")):
            raise CheckpointError(
                f"{origin} is a pickle (as torch.save writes), which could run code when loaded; "
                "convert its state_dict with safetensors.torch.save_file"
            ) from None
        raise CheckpointError(
            f"{origin} ({len(data)} bytes) is not a whole safetensors file ({error}); restore it or make it again"
        ) from error


def _load_weights(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    expected = module.state_dict()
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{origin} does not fit the network: missing are {missing[:3]} ({len(missing)}), "
            f"unknown are {unknown[:3]} ({len(unknown)}); use the network it was made with"
        )
    for name, value in expected.items():
        if weights[name].shape != value.shape or weights[name].dtype != value.dtype:
            raise CheckpointError(
                f"{origin} does not fit the network: {name} should be {value.dtype} {tuple(value.shape)}, "
                f"found {weights[name].dtype} {tuple(weights[name].shape)}; use the network it was made with"
            )
    module.load_state_dict(dict(weights))
