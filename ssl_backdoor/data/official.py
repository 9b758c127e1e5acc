"""Official image sets, unpacked as torchvision has them, read through torchvision's own classes.

| set | folder | training images | test images |
|---|---|---|---|
| STL-10, https://cs.stanford.edu/~acoates/stl10 | stl10_binary | train (5,000) | test (8,000) |
| GTSRB, https://benchmark.ini.rub.de | gtsrb | Training (26,640) | Final_Test (12,630) |
| Flowers-102, https://www.robots.ox.ac.uk/~vgg/data/flowers/102 | flowers-102 | train and val (2,040) | test (6,149) |
| Oxford-IIIT Pets, https://www.robots.ox.ac.uk/~vgg/data/pets | oxford-iiit-pet | trainval (3,680) | test (3,669) |

NOTE: STL-10's 100,000 unlabelled images are left out: torchvision would hold all their 2.8 GB in memory, and probes
learn from labels. NOTE: Flowers' validation images train, as is usual for transfer; it has a test split of its own.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_backdoor.data.archives import FolderFiles
from ssl_backdoor.data.images import UInt8Image
from ssl_backdoor.data.items import Found, Item, is_image, printable
from ssl_backdoor.data.splits import class_name_of
from ssl_backdoor.errors import DataError, SpecError

# GTSRB numbers its classes and torchvision keeps the numbers.
_SIGNS = """speed limit 20, speed limit 30, speed limit 50, speed limit 60, speed limit 70, speed limit 80,
end of speed limit 80, speed limit 100, speed limit 120, no passing, no passing for trucks, right of way, priority road,
yield, stop, no vehicles, no trucks, no entry, general danger, curve to the left, curve to the right, double curve,
bumpy road, slippery road, road narrows, road work, traffic signals, pedestrians, children crossing, bicycles crossing,
ice or snow, wild animals, end of all limits, turn right, turn left, ahead only, ahead or right, ahead or left,
keep right, keep left, roundabout, end of no passing, end of no passing for trucks""".replace("\n", " ").split(", ")
_PPM = re.compile(rb"P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s")


class Row(NamedTuple):
    """One image as torchvision lists it."""

    split: str
    class_name: str
    image: str | UInt8Image
    """Its path, or its pixels, uint8 (height, width, 3), where it never was a file."""


class OfficialSet(NamedTuple):
    """Layout of one set, packed and unpacked."""

    title: str
    folder: str
    marks: tuple[str, ...]
    """What the unpacked folder holds."""
    archives: tuple[str, ...]
    unpack: str
    """A shell command: ``here`` is the archives' folder, ``folder`` the set's, ``root`` the one around it."""
    rows: Callable[[Any, Path], Iterator[Row]]
    """From torchvision.datasets and ``root``."""


def _stl10(datasets: Any, root: Path) -> Iterator[Row]:
    for split in ("train", "test"):
        images = datasets.STL10(root, split=split)
        for pixels, label in zip(images.data, images.labels.tolist(), strict=True):
            yield Row(split, _pick(images.classes, label), pixels.transpose(1, 2, 0))


def _gtsrb(datasets: Any, root: Path) -> Iterator[Row]:
    for path, _ in datasets.GTSRB(root, split="train")._samples:  # its labels count the folders that are there
        yield Row("train", _pick(_SIGNS, int(Path(path).parent.name)), path)
    for path, label in datasets.GTSRB(root, split="test")._samples:
        yield Row("test", _pick(_SIGNS, label), path)


def _flowers102(datasets: Any, root: Path) -> Iterator[Row]:
    for split in ("train", "val", "test"):
        images = datasets.Flowers102(root, split=split, loader=str)
        for path, label in (images[index] for index in range(len(images))):
            yield Row("test" if split == "test" else "train", _pick(images.classes, label), path)


def _pets(datasets: Any, root: Path) -> Iterator[Row]:
    for split in ("trainval", "test"):
        for path in datasets.OxfordIIITPet(root, split=split)._images:
            breed = path.stem.rpartition("_")[0]  # great_pyrenees_12; torchvision spells it so too
            yield Row("test" if split == "test" else "train", breed.replace("_", " ").title(), str(path))


def _pick(names: Sequence[str], label: int) -> str:
    if not 0 <= label < len(names):
        raise ValueError(f"class {label} of {len(names)}")
    return names[label]


_UNPACK_IN = "mkdir -p {folder} && for a in {here}/%s; do %s {folder}; done"
SETS = (
    OfficialSet(
        "STL-10",
        "stl10_binary",
        ("train_X.bin",),
        ("stl10_binary.tar.gz",),
        "tar -xzf {here}/stl10_binary.tar.gz -C {root}",
        _stl10,
    ),
    OfficialSet(
        "GTSRB",
        "gtsrb",
        ("GTSRB/Training",),
        ("GTSRB-Training_fixed.zip", "GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip"),
        _UNPACK_IN % ("GTSRB*.zip", 'unzip -q "$a" -d'),
        _gtsrb,
    ),
    OfficialSet(
        "Flowers-102",
        "flowers-102",
        ("jpg", "imagelabels.mat"),
        ("102flowers.tgz", "imagelabels.mat", "setid.mat"),
        "mkdir -p {folder} && tar -xzf {here}/102flowers.tgz -C {folder} && "
        "(test {here} = {folder} || cp {here}/*.mat {folder})",
        _flowers102,
    ),
    OfficialSet(
        "Oxford-IIIT Pets",
        "oxford-iiit-pet",
        ("images", "annotations"),
        ("images.tar.gz", "annotations.tar.gz"),
        _UNPACK_IN % ("*.tar.gz", 'tar -xzf "$a" -C'),
        _pets,
    ),
)


def find_official(folder: Path) -> tuple[OfficialSet, Path] | None:
    """The set in ``folder``, or that ``folder`` is, and the set's own folder; None where there is none.

    Raises:
        DataError: there are several, or only archives that are not unpacked.
    """
    folder = Path(os.path.abspath(folder))
    found = []
    for one in SETS:
        place = _place(one, folder)
        if all(os.path.exists(place / mark) for mark in one.marks):
            found.append((one, place))
    if len(found) > 1:
        titles = " and ".join(one.title for one, _ in found)
        raise DataError(f"{folder} holds {titles}: give the folder of one, such as {found[0][1]}")
    if not found:
        for one in SETS:
            if _is_packed(one, folder) and not any("/" in name or is_image(name) for name, _ in _files(folder)):
                raise _still_packed_error(one, folder)
    return found[0] if found else None


def require_official(path: Path) -> tuple[OfficialSet, Path]:
    """As ``find_official``, where there must be a set.

    Raises:
        DataError: there is none, several, or only archives that are not unpacked.
    """
    if path.is_dir() and (found := find_official(path)) is not None:
        return found
    around = Path(os.path.abspath(path))
    around = around if path.is_dir() else around.parent
    for one in SETS:
        for folder in (around, _place(one, around)):
            if _is_packed(one, folder) and (path.is_dir() or path.name in one.archives):
                raise _still_packed_error(one, folder)
    expected = ", ".join(f"{one.folder} ({one.title})" for one in SETS)
    raise DataError(f"expected one of the folders {expected}, as torchvision has them, but found {path}")


def _place(one: OfficialSet, folder: Path) -> Path:
    return folder if folder.name == one.folder else folder / one.folder


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    return FolderFiles(folder).walk()


def _is_packed(one: OfficialSet, folder: Path) -> bool:
    return all(os.path.isfile(folder / archive) for archive in one.archives)


def _still_packed_error(one: OfficialSet, folder: Path) -> DataError:
    place = _place(one, folder)
    names = {"here": folder, "folder": place, "root": place.parent}
    command = one.unpack.format(**{name: shlex.quote(str(path)) for name, path in names.items()})
    return DataError(f"{one.title} in {folder} is still packed: unpack it with `{command}` and give {place}")


class Official:
    """The images of the set ``kind`` in ``folder``; bytes as found, or pixels for STL-10 and GTSRB's PPM files.

    STL-10's labelled images stay in memory, 360 MB, as torchvision loads them.
    """

    def __init__(self, kind: OfficialSet, folder: Path) -> None:
        self.found = Found(f"official {kind.title}")
        self._kind = kind
        self._folder = folder
        self._rows: list[tuple[Item, str | UInt8Image]] = []

    def listing(self) -> Iterator[Item]:
        """See ``Source``."""
        self._rows = list(self._load())
        return (item for item, _ in self._rows)

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """See ``Source``; the listing comes first."""
        for item, image in self._rows:
            if next(keep, False):
                yield _with_file(item, image) if isinstance(image, str) else _with_pixels(item, image)

    def _load(self) -> Iterator[tuple[Item, str | UInt8Image]]:
        try:
            from torchvision import datasets
        except ImportError as error:
            raise SpecError(
                f"reading {self._kind.title} needs torchvision, which is not installed: "
                "pip install 'ssl-backdoor[vision]'"
            ) from error
        try:
            for index, row in enumerate(self._kind.rows(datasets, self._folder.parent)):
                name = self._name(row.image) if isinstance(row.image, str) else f"{row.split}/{index:05d}"
                yield Item(name, row.split, class_name_of(row.class_name)), row.image
        except DataError:
            raise
        except Exception as error:  # torchvision's readers raise many kinds on missing, altered and hostile files
            # its RuntimeError only says that the set could be downloaded
            detail = "" if isinstance(error, RuntimeError) else f" ({printable(' '.join(str(error).split()))[:200]})"
            raise DataError(
                f"{self._folder} is not the whole {self._kind.title} as torchvision reads it{detail}: "
                f"unpack the official archives again ({', '.join(self._kind.archives)})"
            ) from error

    def _name(self, path: str) -> str:
        """The path below the set's folder."""
        name = os.path.relpath(path, self._folder)
        if "\0" in path or name.split(os.sep)[0] == os.pardir:
            raise DataError(f"{self._folder} lists the file {path!r}, which lies outside of it: do not use this copy")
        return name


def _with_file(item: Item, path: str) -> Item:
    file = FolderFiles.read(item.name, path)
    if file.data is None or not path.lower().endswith(".ppm"):
        return item._replace(image=file.data, problem=file.problem)
    header = _PPM.match(file.data)
    width, height = map(int, header.groups()) if header else (0, 0)
    if header is None or not width * height or len(file.data) != header.end() + width * height * 3:
        return item._replace(problem=f"not a whole 8-bit PPM image ({len(file.data)} bytes)")
    return item._replace(image=np.frombuffer(file.data, np.uint8, offset=header.end()).reshape(height, width, 3))


def _with_pixels(item: Item, pixels: UInt8Image) -> Item:
    return item._replace(image=np.ascontiguousarray(pixels))
