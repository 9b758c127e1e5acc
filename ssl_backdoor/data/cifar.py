"""The official CIFAR-10 and CIFAR-100 python archives (https://www.cs.toronto.edu/~kriz/cifar.html).

They are pickles, and a pickle is a program: only the reconstruction of a uint8 array is let through.
"""

import io
import pickle
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np

from ssl_backdoor.data.archives import Files, Member
from ssl_backdoor.data.images import UInt8Image
from ssl_backdoor.data.items import Found, Item
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


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Pixels,
    ("numpy", "dtype"): _ByteType,
}


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._left = 2 * len(data)

    def _encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        """``_codecs.encode``: how Python 3 writes bytes for Python 2. The same text over and over ends in an error."""
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("an unknown text encoding")
        self._left -= len(text)
        if self._left < 0:
            raise pickle.UnpicklingError("it repeats a text")
        return text.encode("latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


# Operations of a pickle and the bytes of their argument: no others are let through, so that a few bytes can neither ask
# for memory nor make dictionaries of colliding keys (of large integers, floats or many tuples).
_PLAIN = dict.fromkeys(b"(])}Naestub.R\x85\x86\x87\x88\x89\x93\x94", 0)
_PLAIN |= {0x80: 1, 0x95: 8} | dict.fromkeys(b"hKq", 1) | {ord("M"): 2} | dict.fromkeys(b"Jjr", 4)
_TEXTS = dict.fromkeys(b"UC\x8c", 1) | dict.fromkeys(b"TXB", 4) | {0x8D: 8, 0x8E: 8}
"""Those that hold a text or bytes, and the bytes of their length."""
_MAX_OPERATIONS, _MAX_TUPLES = 2_000_000, 1_000
_TUPLES, _MEMO, _REDUCE, _STOP, _GLOBAL = frozenset(b"t\x85\x86\x87"), frozenset(b"qr"), ord("R"), ord("."), ord("c")


def _check_operations(data: bytes) -> None:
    """Refuse a pickle of other than the operations that the archives and their copies are made of.

    Raises:
        UnpicklingError: it holds another operation, too many, or ends within one.
    """
    at = num_tuples = code = 0
    for count in range(_MAX_OPERATIONS):
        if at >= len(data) or code == _STOP:
            break
        code = data[at]
        at += 1
        if (size := _PLAIN.get(code)) is not None:
            if code in _MEMO and int.from_bytes(data[at : at + size], "little") > count:
                raise pickle.UnpicklingError("it numbers more values than it has")
            at += size
            num_tuples += (code in _TUPLES) - (code == _REDUCE)  # the arguments of a call are no key
        elif size := _TEXTS.get(code, 0):
            at += size + int.from_bytes(data[at : at + size], "little")
        elif code == _GLOBAL:  # two lines
            at = data.find(b"\n", data.find(b"\n", at) + 1) + 1 or len(data)
        else:
            raise pickle.UnpicklingError(f"it holds the operation {bytes([code])!r}")
    if code != _STOP or at > len(data) or num_tuples > _MAX_TUPLES:
        raise pickle.UnpicklingError("it ends early, or holds too many operations")


def _unpickle(name: str, data: bytes | None) -> dict[bytes, Any]:
    try:
        _check_operations(data or b"")
        value = _ArrayUnpickler(data or b"").load()
    except Exception as error:  # a hostile or cut pickle raises nearly anything
        raise DataError(f"{name} is not a CIFAR batch ({error}): fetch the official python archive again") from error
    if not isinstance(value, dict):
        raise DataError(f"{name} is not a CIFAR batch: expected a dictionary, found {type(value).__name__}")
    return value


def cifar_set(file: str) -> str | None:
    """Which of the two archives holds a file of this name."""
    if file in _CIFAR10 or file == "batches.meta":
        return "CIFAR-10"
    return "CIFAR-100" if file in _CIFAR100 or file == "meta" else None


def find_cifar(files: Mapping[tuple[str, str], Set[str]]) -> str | None:
    """The folder of the archive among ``files``, the names of CIFAR's files by (set, folder); None for none.

    Raises:
        DataError: there are several.
    """
    folders = [
        (kind, folder)
        for (kind, folder), names in files.items()
        if (any(name.startswith("data_batch") for name in names) if kind == "CIFAR-10" else len(names) > 1)
    ]
    if len(folders) > 1:
        kinds = " and ".join(f"{kind} in {folder or 'the root'}" for kind, folder in sorted(folders))
        raise DataError(f"the data hold {kinds}: give the folder of one")
    return folders[0][1] if folders else None


class Cifar:
    """The images of the python archive, packed or not; fine labels for CIFAR-100. There are pixels, but no files.

    ``folder`` is where the batches lie below the root; None where there is but one such folder.
    """

    def __init__(self, files: Files, folder: str | None = None) -> None:
        self.found = Found("official CIFAR archive")
        self._files = files
        self._folder = folder
        self._class_names: list[str] = []

    def listing(self) -> Iterator[Item]:
        """See ``Source``."""
        self.found.clear()
        self._class_names = self._read_class_names()
        self.found.layout = f"official CIFAR-{len(self._class_names)} archive"
        for name, labels, _ in self._batches():
            self.found.count_split("file", name, "test" if name.startswith("test") else "train", len(labels))
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
        names = set[str]()
        for member, name in self._members(_META.keys() | _CIFAR10 | _CIFAR100, reads=_META.keys()):
            names.add(name)
            if (field := _META.get(name)) is not None:
                labels = _unpickle(member.name, member.data).get(field)
                if isinstance(labels, list) and all(isinstance(label, bytes) for label in labels):
                    found = [label.decode("ascii", "replace") for label in labels]
        if not found:
            raise DataError("no class names: expected batches.meta or meta next to the CIFAR batches")
        wanted = _CIFAR100 if len(found) == 100 else _CIFAR10
        if missing := sorted(wanted - names):
            raise DataError(
                f"the CIFAR archive is not whole: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; "
                "fetch it again"
            )
        return found

    def _members(self, names: Set[str], reads: Set[str]) -> Iterator[tuple[Member, str]]:
        """The archive's own files of these names, and their names; the content of ``reads``."""

        def name_of(path: str) -> str:
            folder, _, name = path.rpartition("/")
            return name if self._folder in (None, folder) else ""

        for member in self._files.members(lambda path: name_of(path) in reads):
            if (name := name_of(member.name)) in names:
                yield member, name

    def _batches(self) -> Iterator[tuple[str, list[int], UInt8Image]]:
        """(file name, labels, uint8 (n, 3072)) of each batch."""
        is_fine = len(self._class_names) == 100
        wanted = _CIFAR100 if is_fine else _CIFAR10
        for member, name in self._members(wanted, reads=wanted):
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
