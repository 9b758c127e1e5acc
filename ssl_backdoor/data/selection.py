"""Which images of a source are kept, in which split, under which label: decided from names, before any pixel is read.

Chance enters by a number that each image's name gets from the seed, so a choice depends neither on the order of the
source nor on where it lies. Memory is some thirty bytes an image.
"""

import difflib
import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssl_backdoor.data.items import Found, Item, printable
from ssl_backdoor.data.splits import HELD_OUT, IGNORED, choose_test_split, plain
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import DatasetSpec, OwnTestSpec

_MAX_KEY = 80
_KEY_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp"})
"""Left out of keys; another suffix stays in them, as it always did."""
_SPLITS = ("train", *HELD_OUT, IGNORED)
_CODE_OF_SPLIT = {split: code for code, split in enumerate(_SPLITS)}
Ints = npt.NDArray[np.int64]


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def fingerprint(text: str) -> int:
    """64 bits that stand for ``text``."""
    return int.from_bytes(hashlib.blake2b(_raw(text), digest_size=8).digest(), "big")


def _digest(name: str) -> str:
    return hashlib.sha256(_raw(name)).hexdigest()[:10]


def plain_key(name: str) -> str:
    """``train/cat/0001.jpg`` as ``train-cat-0001``: letters, digits, ``_`` and ``-``, at most 80."""
    stem, dot, suffix = name.rpartition(".")
    stem = stem if dot and suffix.lower() in _KEY_SUFFIXES else name
    key = re.sub(r"[^A-Za-z0-9_-]", "_", stem.replace("/", "-"))
    return key if len(key) <= _MAX_KEY else f"{key[: _MAX_KEY - 11]}-{_digest(name)}"


@dataclass(frozen=True)
class Selection:
    """The decision for each image of a listing, in its order."""

    keep: npt.NDArray[np.bool_]
    is_test: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int32]
    """Index into ``classes``; -1 where there is none."""
    classes: tuple[str, ...]
    fingerprints: npt.NDArray[np.uint64]
    """Of the plain keys."""
    shared: frozenset[int]
    """Fingerprints that more than one image has."""
    left_out: Mapping[str, int]
    """Images of splits that are not used, by split: see ``HELD_OUT``."""

    def name_items(self, items: Iterable[Item]) -> Iterator[tuple[int, str, Item]]:
        """(row, unique key, item) of the kept images.

        Raises:
            DataError: the source is not the one that was listed, or holds one name twice.
        """
        rows = np.flatnonzero(self.keep)
        seen: set[str] = set()
        count = 0
        for count, item in enumerate(items, start=1):
            key = plain_key(item.name)
            mark = fingerprint(key)
            if count > len(rows) or mark != int(self.fingerprints[rows[count - 1]]):
                raise DataError("the data changed while they were read: start again when nobody writes to them")
            if mark in self.shared:
                key = f"{key}-{_digest(item.name)}"
                if key in seen:
                    raise DataError(f"two images are named {item.name!r}: rename one of them")
                seen.add(key)
            yield int(rows[count - 1]), key, item
        if count != len(rows):
            raise DataError("the data changed while they were read: start again when nobody writes to them")


def select(listing: Iterable[Item], spec: DatasetSpec, found: Found | None = None) -> Selection:
    """Decide by ``spec``'s splits, classes, held-out fraction, caps and kept fraction, in this order.

    Images with a ``problem`` are never kept. Where test images come from a second source, none is held out or
    lost to the kept fraction, and training images need no class. Of ``found`` what was passed over is named where there
    are no images.

    Raises:
        SpecError: a class that the data do not have.
        DataError: no images at all.
    """
    has_own_test = isinstance(spec.test_source, OwnTestSpec)
    draws_test = has_own_test and spec.test_fraction > 0
    draws_kept = spec.keep_fraction < 1 or spec.max_train_per_class > 0 or spec.max_test_per_class > 0
    code_of: dict[str | None, int] = {None: 0}
    codes, splits, usable = array("i"), array("b"), array("b")
    fingerprints, test_draws, keep_draws = array("Q"), array("Q"), array("Q")
    for item in listing:
        codes.append(code_of.setdefault(item.class_name, len(code_of)))
        splits.append(_CODE_OF_SPLIT[item.split])
        usable.append(not item.problem)
        fingerprints.append(fingerprint(plain_key(item.name)))
        if draws_test:
            test_draws.append(sub_seed(spec.subset_seed, "test", printable(item.name)))
        if draws_kept:
            keep_draws.append(sub_seed(spec.subset_seed, "keep", printable(item.name)))
    if not codes:
        other = f"; found {found.list_ignored()}" if found is not None and found.ignored else ""
        raise DataError(f"no images found: expected files such as train/cat/0001.jpg, an archive or shards{other}")

    keep = np.frombuffer(usable, np.int8).astype(bool)
    split_codes, class_codes = np.frombuffer(splits, np.int8), np.frombuffer(codes, np.int32)
    counts = dict(zip(_SPLITS, np.bincount(split_codes[keep], minlength=len(_SPLITS)).tolist(), strict=True))
    test_split = choose_test_split(split for split in HELD_OUT if counts[split])
    left_out = {split: counts[split] for split in (*HELD_OUT, IGNORED) if counts[split] and split != test_split}
    is_test = split_codes == _CODE_OF_SPLIT[test_split]
    is_used = is_test | (split_codes == _CODE_OF_SPLIT["train"])
    keep &= is_used

    names = tuple(code_of)
    used_names = (names[code] for code in np.unique(class_codes[is_used]).tolist())
    classes = _classes(used_names, tuple(map(plain, spec.classes)))
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number.get(name, -1) if name is not None else -1 for name in names], np.int32)[class_codes]
    if spec.classes:
        keep &= (labels >= 0) | ((class_codes == 0) & ~is_test & (not has_own_test))
    if draws_test and not is_test[keep].any():
        for rows in _groups(keep, labels, is_test):
            is_test[_lowest(test_draws, rows, round(len(rows) * spec.test_fraction))] = True
    if draws_kept:
        for rows in _groups(keep, labels, is_test):
            cap = spec.max_test_per_class if is_test[rows[0]] else spec.max_train_per_class
            count = min(len(rows), cap) if cap else len(rows)
            is_whole = is_test[rows[0]] and not has_own_test
            chosen = _lowest(keep_draws, rows, count if is_whole else max(1, round(count * spec.keep_fraction)))
            keep[rows] = False
            keep[chosen] = True
    marks = np.frombuffer(fingerprints, np.uint64)
    return Selection(keep, is_test, labels, classes, marks, _find_duplicates(marks), left_out)


def _find_duplicates(marks: npt.NDArray[np.uint64]) -> frozenset[int]:
    ordered = np.sort(marks)
    return frozenset(ordered[1:][ordered[1:] == ordered[:-1]].tolist())


def _classes(found: Iterable[str | None], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The class names in order: by number where all are numbers, else by letter."""
    names = {name for name in found if name is not None}
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5) or sorted(names)[:3]
            hint = f"did you mean {' or '.join(near)}?" if near else "they have no classes at all"
            raise SpecError(f"the data have no class {name!r} ({len(names)} classes found): {hint}")
    names = set(wanted) or names
    if all(name.isdecimal() and name.isascii() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _groups(
    keep: npt.NDArray[np.bool_], labels: npt.NDArray[np.int32], is_test: npt.NDArray[np.bool_]
) -> Iterator[Ints]:
    """The rows of each split and label among those kept."""
    rows = np.flatnonzero(keep)
    group = labels[rows] * 2 + is_test[rows]
    order = np.argsort(group, kind="stable")
    for part in np.split(rows[order], np.flatnonzero(np.diff(group[order])) + 1):
        if len(part):
            yield part


def _lowest(draws: "array[int]", rows: Ints, count: int) -> Ints:
    """The ``count`` rows that drew the lowest numbers."""
    drawn = np.frombuffer(draws, np.uint64)[rows]
    return rows[np.argsort(drawn, kind="stable")[:count]]
