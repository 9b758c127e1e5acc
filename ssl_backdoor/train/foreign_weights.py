"""Weights that others saved: read without running code, and fitted to the network they are said to be of."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ssl_backdoor.errors import CheckpointError
from ssl_backdoor.methods.external import reason_of

_WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher", "student", "ema", "backbone", "encoder")
"""Names under which training scripts keep the weights among other things."""
_MAX_CANDIDATES = 50


class Fitted(NamedTuple):
    """Weights by the names of the network."""

    weights: dict[str, Tensor]
    remarks: tuple[str, ...]
    """What was left out."""


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors by name in a safetensors file, or in a torch file, of which nothing is executed.

    Both are mapped into memory, not read: a file takes no more than its own size, whatever it says of itself.

    Raises:
        CheckpointError: it is missing, another kind of file, or holds what could run code.
    """
    try:
        if not file.is_file():  # a pipe or a device would never end
            raise CheckpointError(f"expected a file of weights at {file}, found none; give a safetensors or torch file")
        with file.open("rb") as opened:
            start = opened.read(4)
        found: Any = _read_torch(file) if start == b"PK\x03\x04" else _read_safetensors(file, start)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); give another file of weights") from error
    weights = _tensors(found)
    if not weights:
        raise CheckpointError(f"expected tensors by name in {file}, found none; save the network's state_dict")
    if odd := [name for name, one in weights.items() if one.layout is not torch.strided or one.is_meta]:
        raise CheckpointError(f"expected plain tensors in {file}, found {odd[0]} sparse or empty; save them dense")
    return weights


def fit_weights(
    held: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str, left_out: tuple[str, ...] = ()
) -> Fitted:
    """``held`` under the names of ``expected``, whose shapes they must have; other precisions become its own.

    A prefix that all names of the network share (module., backbone., module.encoder_q., ...) is taken off, and what
    does not have it is of other networks. ``left_out`` are beginnings of names that may be there and are not wanted.

    Raises:
        CheckpointError: names or shapes do not fit, two networks in the file do, or numbers are not finite.
    """
    needed = {name for name in expected if not name.endswith("num_batches_tracked")}
    prefix = _prefix(held, needed, origin)
    own = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
    missing = sorted(needed - own.keys())
    surplus = sorted(name for name in own.keys() - expected.keys() if not name.startswith(left_out or ("\n",)))
    wrong = [name for name in sorted(needed & own.keys()) if own[name].shape != expected[name].shape]
    if missing or surplus:
        parts = [
            f"{what} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''} ({len(names)})"
            for what, names in (("missing", missing), ("unexpected", surplus))
            if names
        ]
        raise CheckpointError(
            f"{origin}: the weights are of another network: {'; '.join(parts)}; name the one they are of"
        )
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{origin}: {name} should be {tuple(expected[name].shape)}, found {tuple(own[name].shape)} ({len(wrong)} "
            "such); name the network they are of, or its image size"
        )
    weights = {
        name: own[name].to(value.dtype).contiguous() if name in own else torch.zeros(value.shape, dtype=value.dtype)
        for name, value in expected.items()
    }
    if bad := [name for name, value in weights.items() if not bool(value.isfinite().all())]:
        raise CheckpointError(
            f"{origin}: {', '.join(bad[:3])} ({len(bad)}) hold numbers that are not finite; restore the file"
        )
    others = len(held) - len(own)
    return Fitted(weights, (f"{others} tensors of the file are of other networks: left out",) * bool(others))


def _prefix(held: Mapping[str, Tensor], needed: set[str], origin: str) -> str:
    """What stands before the network's names in the file: the one under which most of them are found."""
    first = min(needed, key=lambda name: (-name.count("."), name))
    found = {name[: -len(first)] for name in held if name == first or name.endswith(f".{first}")}
    counts = {prefix: sum(prefix + name in held for name in needed) for prefix in sorted(found)[:_MAX_CANDIDATES]}
    if not counts or "" in counts:
        return ""
    best = max(counts.values())
    if len(equal := [prefix for prefix, count in counts.items() if count == best]) > 1:
        raise CheckpointError(
            f"{origin}: the file holds {len(equal)} networks that fit, named {', '.join(equal[:3])}...; keep one"
        )
    return equal[0]


def _read_safetensors(file: Path, start: bytes) -> dict[str, Tensor]:
    if start.startswith(b"\x80"):
        raise CheckpointError(
            f"{file} is a pickle, which could run code when loaded; save its state_dict with safetensors or torch.save"
        )
    try:
        return load_file(file)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors or torch file ({reason_of(error)}); restore it"
        ) from error


def _read_torch(file: Path) -> Any:
    """torch.save's: a zip of tensors and a pickle, of which torch reads plain values alone."""
    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            if any(one.compress_type != zipfile.ZIP_STORED or one.file_size > size for one in archive.infolist()):
                raise CheckpointError(
                    f"expected a file as torch.save writes it, found {file} compressed; save it again"
                )
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch and zipfile say in many ways what is no such file
        if type(error).__name__ == "UnpicklingError":
            raise CheckpointError(
                f"{file} holds more than tensors, which could run code when loaded; save the network's state_dict alone"
            ) from error
        raise CheckpointError(f"{file} cannot be read as a torch file ({reason_of(error)}); save it again") from error


def _tensors(found: Any) -> dict[str, Tensor]:
    if not isinstance(found, Mapping):
        return {}
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return tensors or next(filter(None, _nested(found)), {})


def _nested(found: Mapping[Any, Any]) -> Iterator[dict[str, Tensor]]:
    for name in _WRAPPERS:
        inner = found.get(name)
        if isinstance(inner, Mapping):
            yield {key: one for key, one in inner.items() if isinstance(key, str) and isinstance(one, Tensor)}
