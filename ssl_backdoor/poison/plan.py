"""Who is poisoned: the parts that every attack's plan is made of. Tables only, no pixels.

Choices rank the samples by a hash of their own key under a named stream, so they depend neither on the order of the
rows nor on how the images are cut into shards.
"""

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ssl_backdoor.data.dataset import BLOCK_ROWS, Samples, blocks
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.seeds import Name
from ssl_backdoor.tables import PARTNERS, POISON_PLAN

Where = Callable[[pa.Array], pa.Array]
"""Labels -> a mask over them."""


def training(samples: Samples, columns: list[str], where: Where | None = None) -> Iterator[pa.RecordBatch]:
    """``columns`` of the training images by blocks, in order; only of those whose labels pass ``where``, if given."""
    for block in blocks(samples, list(dict.fromkeys(["split", "label", *columns]))):
        mask = pc.equal(block["split"], "train")
        if where is not None:
            mask = pc.and_(mask, where(block["label"]))
        yield block.filter(mask).select(columns)


def key_seeds(keys: pa.Array | pa.ChunkedArray, seed: int, *names: Name) -> NDArray[np.int64]:
    """``sub_seed(seed, *names, key)`` of every key: int64 (N,), about 0.4 microseconds each, 8 bytes each."""
    prefix = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names), "str:"]).encode()
    seeds = np.empty(len(keys), np.int64)
    for start in range(0, len(keys), BLOCK_ROWS):
        block = keys.slice(start, BLOCK_ROWS).cast(pa.binary()).to_pylist()
        digests = b"".join([hashlib.sha256(prefix + key).digest() for key in block])
        seeds[start : start + len(block)] = np.frombuffer(digests, ">u8")[::4] >> np.uint64(1)
    return seeds


def choose(keys: pa.ChunkedArray, count: int, seed: int, *names: Name) -> NDArray[np.bool_]:
    """A mask, bool (N,), over ``count`` of ``keys``: those whose seeds in the stream ``names`` are smallest."""
    chosen = np.zeros(len(keys), np.bool_)
    if count:
        chosen[np.argpartition(key_seeds(keys, seed, *names), count - 1)[:count]] = True
    return chosen


def chosen_rows(found: Iterable[pa.RecordBatch], count: int, seed: int, *names: Name) -> pa.Table:
    """The rows that ``choose`` takes by their "key", in their order; of the others one block at a time is held."""
    kept: list[pa.RecordBatch] = []
    seeds, limit = np.empty(0, np.int64), np.iinfo(np.int64).max

    def lowest() -> tuple[pa.Table, NDArray[np.int64]]:
        rows = np.sort(np.argpartition(seeds, count - 1)[:count])
        return pa.Table.from_batches(kept).take(pa.array(rows)).combine_chunks(), seeds[rows]

    for block in found:
        drawn = key_seeds(block["key"], seed, *names)
        kept.append(block.filter(pa.array(drawn < limit)))
        seeds = np.append(seeds, drawn[drawn < limit])
        if len(seeds) > 2 * count + BLOCK_ROWS:
            table, seeds = lowest()
            kept, limit = table.to_batches(), seeds.max()
    return lowest()[0]


def label_of(target_class: str, classes: Sequence[str]) -> int:
    """Index of ``target_class`` in ``classes``.

    Raises:
        SpecError: there is no such class; the message lists near names.
    """
    if target_class in classes:
        return list(classes).index(target_class)
    near = difflib.get_close_matches(target_class, classes, n=5, cutoff=0.4) or list(classes[:5])
    raise SpecError(
        f"target_class {target_class!r} is not one of the {len(classes)} classes: did you mean {', '.join(near)}?"
    )


def added_table(added: pa.Table, samples: Samples) -> pa.Table:
    """The plan's "add" rows, which have no key yet, sorted by the keys that they get; further columns stay at the end.

    Raises:
        DataError: the dataset already has keys such as "poison-000000".
    """
    width = max(6, len(str(added.num_rows - 1)))
    keys = pa.array([f"poison-{index:0{width}d}" for index in range(added.num_rows)])
    if any(pc.any(pc.is_in(block["key"], value_set=keys)).as_py() for block in blocks(samples, ["key"])):
        raise DataError('the dataset already has an image called "poison-...", as added pairs are: rename it')
    actions = pa.array(["add"] * added.num_rows)
    columns = {"key": keys, "action": actions} | {name: added[name] for name in added.column_names}
    schema = pa.schema([*POISON_PLAN, *(field for field in PARTNERS if field.name in columns)])
    return pa.table([columns[name] for name in schema.names], schema.names).cast(schema)


def plan_table(rows: pa.Table, chosen: pa.ChunkedArray, seed: int) -> pa.Table:
    """The POISON_PLAN that replaces ``rows`` (key, label), sorted by key.

    Those whose keys are not ``chosen`` stay clean, but go through the same codec (their sub_seed is 0).
    """
    is_poisoned = pc.is_in(rows["key"], value_set=chosen.combine_chunks())
    sub_seeds = np.zeros(rows.num_rows, np.int64)
    sub_seeds[is_poisoned.to_numpy()] = key_seeds(rows["key"].filter(is_poisoned), seed, "poison", "place")
    action = pc.if_else(is_poisoned, "poison", "recode")
    captions = pa.nulls(rows.num_rows, pa.string())
    columns = [rows["key"], rows["key"], action, rows["label"], pa.array(sub_seeds), captions]
    return pa.table(columns, schema=POISON_PLAN).sort_by("key")
