"""The official CIFAR-10 and CIFAR-100 python archives (https://www.cs.toronto.edu/~kriz/cifar.html).

They are pickles, and a pickle is a program: only the reconstruction of a uint8 array is let through.
"""

import io
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np

from ssl_backdoor.data.archives import Files
from ssl_backdoor.data.images import UInt8Image
from ssl_backdoor.data.items import Item
from ssl_backdoor.errors import DataError

_SIDE_PX = 32
_CIFAR10 = frozenset({f"data_batch_{number}" for number in range(1, 6)} | {"test_batch"})
_CIFAR100 = frozenset({"train", "test"})
_META = {"batches.meta": b"label_names", "meta": b"fine_label_names"}


class _ByteType:
    """Stands for ``numpy.dtype``: bytes, whatever its further state says."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of {code!r} instead of bytes")

    def __setstate__(self, _: Any) -> None: ...


class _Pixels:
    """Stands for ``numpy.ndarray``; NumPy itself reads nothing of the pickle."""

    array: UInt8Image = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, raw = state
        if not isinstance(kind, _ByteType) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array without bytes")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(*_: Any) -> _Pixels:
    """Stands for NumPy's function of that name: an empty array, filled by its state."""
    return _Pixels()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """``_codecs.encode``: how Python 3 writes bytes for Python 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("an unknown text encoding")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Pixels,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _unpickle(name: str, data: bytes | None) -> dict[bytes, Any]:
    try:
        value = _ArrayUnpickler(io.BytesIO(data or b""), encoding="bytes").load()
    except Exception as error:  # a hostile or cut pickle raises nearly anything
        raise DataError(f"{name} is not a CIFAR batch ({error}): fetch the official python archive again") from error
    if not isinstance(value, dict):
        raise DataError(f"{name} is not a CIFAR batch: expected a dictionary, found {type(value).__name__}")
    return value


def is_cifar(names: list[str]) -> bool:
    """Whether files of these names are the official archive's."""
    files = {name.rpartition("/")[2] for name in names}
    return "data_batch_1" in files or {"train", "test", "meta"} <= files


class Cifar:
    """The images of the python archive, packed or not; fine labels for CIFAR-100. There are pixels, but no files."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._class_names: list[str] = []

    def listing(self) -> Iterator[Item]:
        """See ``Source``."""
        self._class_names = self._read_class_names()
        for name, labels, _ in self._batches():
            yield from (self._item(name, index, label) for index, label in enumerate(labels))

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """See ``Source``; the listing comes first."""
        for name, labels, pixels in self._batches():
            for index, label in enumerate(labels):
                if next(keep, False):
                    image = pixels[index].reshape(3, _SIDE_PX, _SIDE_PX).transpose(1, 2, 0)
                    yield self._item(name, index, label)._replace(image=np.ascontiguousarray(image))

    def _item(self, batch: str, index: int, label: int) -> Item:
        split = "test" if batch.startswith("test") else "train"
        return Item(f"{batch}/{index:05d}", split, self._class_names[label])

    def _read_class_names(self) -> list[str]:
        found: list[str] = []
        for member in self._files.members(lambda name: name.rpartition("/")[2] in _META):
            field = _META.get(member.name.rpartition("/")[2])
            if field is not None:
                names = _unpickle(member.name, member.data).get(field)
                if isinstance(names, list) and all(isinstance(name, bytes) for name in names):
                    found = [name.decode("ascii", "replace") for name in names]
        if not found:
            raise DataError("no class names: expected batches.meta or meta next to the CIFAR batches")
        return found

    def _batches(self) -> Iterator[tuple[str, list[int], UInt8Image]]:
        """(file name, labels, uint8 (n, 3072)) of each batch."""
        is_fine = len(self._class_names) == 100
        wanted = _CIFAR100 if is_fine else _CIFAR10
        for member in self._files.members(lambda name: name.rpartition("/")[2] in wanted):
            name = member.name.rpartition("/")[2]
            if name in wanted:
                batch = _unpickle(member.name, member.data)
                labels, pixels = batch.get(b"fine_labels" if is_fine else b"labels"), batch.get(b"data")
                yield name, self._labels(member.name, labels), _array(member.name, pixels, labels)

    def _labels(self, name: str, labels: Any) -> list[int]:
        classes = range(len(self._class_names))
        if not isinstance(labels, list) or any(not isinstance(label, int) or label not in classes for label in labels):
            raise DataError(f"{name} is not a CIFAR batch: expected labels from 0 to {len(classes) - 1}")
        return labels


def _array(name: str, pixels: Any, labels: Any) -> UInt8Image:
    if not isinstance(pixels, _Pixels) or pixels.array.shape != (len(labels), 3 * _SIDE_PX**2):
        raise DataError(f"{name} is not a CIFAR batch: expected one image of 3 x 32 x 32 bytes for each label")
    return pixels.array
