"""An ingested set of images, and the few samples that a poisoning puts in their place."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pyarrow as pa

from ssl_backdoor.specs import DatasetSpec


@dataclass(frozen=True)
class Dataset:
    """``samples`` (schema SAMPLES) locates each image inside ``folder``; ``classes[label]`` names a label."""

    folder: Path
    samples: pa.Table
    classes: tuple[str, ...]
    spec: DatasetSpec


@dataclass(frozen=True)
class Overlay:
    """``rows`` (schema OVERLAY) locates each replacing image inside ``folder``."""

    folder: Path
    rows: pa.Table


CLASS_LISTS = ("imagenet100_a", "imagenet100_b")
"""B: ImageNet-100 as published with CMC (Tian et al. 2020), which Saha et al. use. A: a hundred classes disjoint from
them, of CorruptEncoder (Zhang et al. 2024, https://github.com/jzhang538/CorruptEncoder at 95838e9), for transfer."""


def class_list(name: str) -> tuple[str, ...]:
    """The wnids of one of ``CLASS_LISTS``, sorted."""
    text = resources.files("ssl_backdoor.data").joinpath(f"{name}.txt").read_text(encoding="ascii")
    return tuple(text.split())
