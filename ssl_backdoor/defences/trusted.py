"""The trusted part of the clean data: all that a defence may use."""

import dataclasses
from collections import defaultdict
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.errors import SpecError
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.tables import TRUSTED


class Trusted(NamedTuple):
    """What ``open_trusted`` found."""

    table: pa.Table
    """Schema TRUSTED, sorted by key."""
    dataset: Dataset
    """The dataset with the trusted samples alone."""


def select(samples: pa.Table, trusted_fraction: float, seed: int) -> pa.Table:
    """The trusted images: of the training images of each label, ``trusted_fraction`` of them, at least one.

    An image's rank is a hash of seed and key: the choice does not depend on the order of rows, and a larger fraction
    holds a smaller one. No poison plan is looked at.

    Args:
        samples: Schema SAMPLES.
        trusted_fraction: In (0, 1]; the number per label is rounded.
        seed: Names the choice.

    Returns:
        Schema TRUSTED, sorted by key.
    """
    train = samples.filter(pc.equal(samples["split"], "train"))
    by_label: dict[int, list[str]] = defaultdict(list)
    for key, label in zip(train["key"].to_pylist(), train["label"].to_pylist(), strict=True):
        by_label[label].append(key)
    trusted: list[str] = []
    for keys in by_label.values():
        ranked = sorted(keys, key=lambda key: (sub_seed(seed, "trusted", key), key))
        trusted += ranked[: num_trusted(len(keys), trusted_fraction)]
    return pa.table({"key": sorted(trusted)}, schema=TRUSTED)


def num_trusted(num_images: int, trusted_fraction: float) -> int:
    """How many of the training images of one label are trusted."""
    return max(1, round(trusted_fraction * num_images))


def open_trusted(dataset: Dataset, trusted_fraction: float, seed: int, batch_size: int) -> Trusted:
    """``select`` applied to ``dataset``, enough for one batch.

    Raises:
        SpecError: There are fewer trusted images than ``batch_size``.
    """
    table = select(dataset.samples, trusted_fraction, seed)
    if table.num_rows < batch_size:
        raise SpecError(
            f"one batch of the defence needs {batch_size} trusted images, but trusted_fraction "
            f"{trusted_fraction} gives {table.num_rows}; raise it or lower the batch_size"
        )
    chosen = dataset.samples.filter(pc.is_in(dataset.samples["key"], table["key"]))
    return Trusted(table, dataclasses.replace(dataset, samples=chosen))
