"""An ingested set of images, and the few samples with which a poisoning replaces some of them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_backdoor.data.in_place import Places
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.errors import DataError
from ssl_backdoor.specs import DatasetSpec
from ssl_backdoor.store import Range

Samples: TypeAlias = pa.Table | Path
"""Rows of schema SAMPLES: in memory, or a Parquet file that is scanned."""
BLOCK_ROWS = 65_536
"""Rows of a block, where a table is read block by block."""


@dataclass(frozen=True)
class Dataset:
    """``samples`` (schema SAMPLES) locates each image inside ``folder``; ``classes[label]`` names a label."""

    folder: Path
    samples: pa.Table
    classes: tuple[str, ...]
    spec: DatasetSpec
    places: Places | None = None
    """Where images lie that were indexed in place."""

    def read(self, rows: pa.Table) -> Iterator[bytes]:
        """The images at the (shard, offset, size) of ``rows``, in their order; DataError where a shard is damaged.

        Of images that were indexed in place also their sha256 is a column.
        """
        return read_bytes(self.folder, rows) if self.places is None else self.places.read(rows)


@dataclass(frozen=True)
class LazyDataset:
    """A dataset of which few images are needed: neither its table nor its shards are loaded or downloaded whole."""

    samples: Path
    classes: tuple[str, ...]
    spec: DatasetSpec
    read_ranges: Callable[[Iterable[Range]], Iterator[bytes]]
    """The bytes of parts of the shards, in order."""
    places: Places | None = None
    """Where images lie that were indexed in place."""

    def read(self, rows: pa.Table) -> Iterator[bytes]:
        """As ``Dataset.read``, of rows of ``lookup_locations``; DataError for an image that was altered since."""
        if self.places is not None:
            yield from self.places.read(rows)
            return
        shards, offsets, sizes, keys, digests = (
            rows[name].to_pylist() for name in ("shard", "offset", "size", "key", "sha256")
        )
        found = self.read_ranges(map(Range, shards, offsets, sizes))
        for key, digest, data in zip(keys, digests, found, strict=True):
            if hashlib.sha256(data).hexdigest() != digest:
                raise DataError(
                    f"the image {key!r} is not the one that was ingested: its shard was damaged or altered; "
                    "delete that artifact and run again"
                )
            yield data


@dataclass(frozen=True)
class Overlay:
    """``rows`` (schema OVERLAY) locates each replacing image inside ``folder``."""

    folder: Path
    rows: pa.Table


def blocks(samples: Samples, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """``columns`` of every row, in order; memory holds one block of rows."""
    if isinstance(samples, pa.Table):
        yield from samples.select(columns).to_batches(max_chunksize=BLOCK_ROWS)
    else:
        with pq.ParquetFile(samples) as file:
            for group in range(file.num_row_groups):  # iter_batches over all of them keeps what it has read
                yield from file.read_row_group(group, columns=columns).to_batches(max_chunksize=BLOCK_ROWS)


def lookup_locations(samples: Samples, keys: pa.ChunkedArray) -> pa.Table:
    """Locations of the images ``keys``, in this order: columns key, shard, offset, size, sha256."""
    wanted = keys.combine_chunks()
    columns = ["key", "shard", "offset", "size", "sha256"]
    found = [block.filter(pc.is_in(block["key"], value_set=wanted)) for block in blocks(samples, columns)]
    rows = pa.Table.from_batches(found)
    return rows.take(pc.index_in(keys, value_set=rows["key"].combine_chunks()))


CLASS_LISTS = ("imagenet100_a", "imagenet100_b")
"""B: ImageNet-100 as published with CMC (Tian et al. 2020), which Saha et al. use. A: a hundred classes disjoint from
them, of CorruptEncoder (Zhang et al. 2024, https://github.com/jzhang538/CorruptEncoder at 95838e9), for transfer."""


def class_list(name: str) -> tuple[str, ...]:
    """The wnids of one of ``CLASS_LISTS``, sorted."""
    text = resources.files("ssl_backdoor.data").joinpath(f"{name}.txt").read_text(encoding="ascii")
    return tuple(text.split())
