"""How many images of each class a dataset keeps, and how large they are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.data.dataset import Samples, blocks
from ssl_backdoor.data.selection import Selection


class Counts(NamedTuple):
    """The kept images, in numbers."""

    classes: tuple[str, ...]
    train_per_class: tuple[int, ...]
    test_per_class: tuple[int, ...]
    num_unlabelled: int
    """Further training images, of no class."""
    num_unlabelled_test: int

    @property
    def num_train(self) -> int:
        """Training images, labelled or not."""
        return sum(self.train_per_class) + self.num_unlabelled

    @property
    def num_test(self) -> int:
        """Labelled test images."""
        return sum(self.test_per_class)


class Sized(NamedTuple):
    """One image and its size in px."""

    key: str
    width: int
    height: int


class Measured(NamedTuple):
    """What only ingested images show."""

    counts: Counts
    smallest: dict[tuple[str, int], Sized]
    """Of each (split, label), -1 for none: the image whose shorter side is least."""
    unlike: dict[str, tuple[Sized, Sized]]
    """Of each split whose images differ in size: two that do."""
    num_uncaptioned: int
    """Training images without a caption."""


def count(selection: Selection) -> Counts:
    """The images that ``selection`` keeps."""
    of_train, of_test = (selection.keep & mask for mask in (~selection.is_test, selection.is_test))
    return _counts(selection.classes, selection.labels[of_train], selection.labels[of_test])


def _counts(classes: Sequence[str], train: npt.NDArray[np.int32], test: npt.NDArray[np.int32]) -> Counts:
    (no_train, *per_train), (no_test, *per_test) = (
        np.bincount(labels + 1, minlength=len(classes) + 1).tolist() for labels in (train, test)
    )
    return Counts(tuple(classes), tuple(per_train), tuple(per_test), no_train, no_test)


def measure(samples: Samples, classes: Sequence[str]) -> Measured:
    """The images of ``samples``, a block of rows at a time."""
    labels: dict[str, list[npt.NDArray[np.int32]]] = {"train": [], "test": []}
    smallest: dict[tuple[str, int], Sized] = {}
    first: dict[str, Sized] = {}
    unlike: dict[str, tuple[Sized, Sized]] = {}
    num_uncaptioned = 0
    for block in blocks(samples, ["split", "label", "key", "width", "height", "caption"]):
        for split, found in labels.items():
            rows = block.filter(pc.equal(block["split"], split))
            if not rows.num_rows:
                continue
            num_uncaptioned += rows["caption"].null_count if split == "train" else 0
            label, width, height = (rows[name].to_numpy() for name in ("label", "width", "height"))
            found.append(label)

            def image(row: int, rows: pa.RecordBatch = rows) -> Sized:
                return Sized(*(rows[name][row].as_py() for name in ("key", "width", "height")))

            start = first.setdefault(split, image(0))
            others = np.flatnonzero((width != start.width) | (height != start.height))
            if len(others):
                unlike.setdefault(split, (start, image(int(others[0]))))
            order = np.lexsort((np.minimum(width, height), label))
            for row in order[np.flatnonzero(np.diff(label[order], prepend=-2))].tolist():
                one, place = image(row), (split, int(label[row]))
                smallest[place] = min(smallest.get(place, one), one, key=lambda sized: min(sized[1:]))
    none = np.empty(0, np.int32)
    counts = _counts(classes, *(np.concatenate([none, *found]) for found in labels.values()))
    return Measured(counts, smallest, unlike, num_uncaptioned)
