"""Who is poisoned: the parts that every attack's plan is made of. Tables only, no pixels.

Choices rank the samples by a hash of their own key under a named stream, so they depend neither on the order of the
rows nor on how the images are cut into shards.
"""

import difflib
import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ssl_backdoor.errors import SpecError
from ssl_backdoor.seeds import Name
from ssl_backdoor.tables import POISON_PLAN

_BLOCK = 65_536


def key_seeds(keys: pa.ChunkedArray, seed: int, *names: Name) -> NDArray[np.int64]:
    """``sub_seed(seed, *names, key)`` of every key: int64 (N,), about half a microsecond each, 8 bytes each."""
    prefix = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names), "str:"])
    base = hashlib.sha256(prefix.encode())

    def digest(key: str) -> bytes:
        state = base.copy()
        state.update(key.encode())
        return state.digest()[:8]

    seeds = np.empty(len(keys), np.int64)
    for start in range(0, len(keys), _BLOCK):
        block = keys.slice(start, _BLOCK).to_pylist()
        seeds[start : start + len(block)] = np.frombuffer(b"".join(map(digest, block)), ">u8") >> np.uint64(1)
    return seeds


def choose(keys: pa.ChunkedArray, count: int, seed: int, *names: Name) -> NDArray[np.bool_]:
    """A mask, bool (N,), over ``count`` of ``keys``: those whose seeds in the stream ``names`` are smallest."""
    chosen = np.zeros(len(keys), np.bool_)
    if count:
        chosen[np.argpartition(key_seeds(keys, seed, *names), count - 1)[:count]] = True
    return chosen


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


def plan_table(candidates: pa.Table, chosen: NDArray[np.bool_], seed: int, *, recode: bool) -> pa.Table:
    """The POISON_PLAN that replaces the ``chosen`` rows of ``candidates`` (key, label), sorted by key.

    With ``recode`` the rows not chosen are listed too: clean, but through the same codec (their sub_seed is 0).
    """
    rows = candidates if recode else candidates.filter(pa.array(chosen))
    poisoned = chosen if recode else np.ones(rows.num_rows, np.bool_)
    sub_seeds = np.zeros(rows.num_rows, np.int64)
    sub_seeds[poisoned] = key_seeds(rows["key"].filter(pa.array(poisoned)), seed, "poison", "place")
    action = pc.if_else(pa.array(poisoned), "poison", "recode")
    columns = [
        rows["key"],
        rows["key"],
        action,
        rows["label"],
        pa.array(sub_seeds),
        pa.nulls(rows.num_rows, pa.string()),
    ]
    return pa.table(columns, schema=POISON_PLAN).sort_by("key")
