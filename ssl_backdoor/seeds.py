"""Named random streams: the only source of randomness in the project.

A stream is a pure function of a seed and a path of names, so results depend neither on the order in which
streams are opened nor on how many workers open them.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Name = str | int


def sub_seed(seed: int, *names: Name) -> int:
    """A 63-bit seed for the stream ``names`` under ``seed``; stable across platforms and versions."""
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: Name) -> np.random.Generator:
    """A NumPy generator (PCG64) for the stream ``names`` under ``seed``."""
    return generator(sub_seed(seed, *names))


def generator(seed: int) -> np.random.Generator:
    """The NumPy generator (PCG64) of a stream whose ``sub_seed`` is already known."""
    return np.random.Generator(np.random.PCG64(seed))


def torch_generator(seed: int, *names: Name, device: str = "cpu") -> "torch.Generator":
    """A torch generator on ``device`` for the stream ``names`` under ``seed``."""
    import torch

    return torch.Generator(device=device).manual_seed(sub_seed(seed, *names))
