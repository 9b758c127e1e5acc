"""Small images, and folders and archives of them, for the tests of the data package."""

import io
import itertools
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_backdoor.data.items import Item
from ssl_backdoor.data.sources import open_source
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec

Contents = Mapping[str, bytes]


def picture(seed: int, side: int = 12, kind: str = "PNG") -> bytes:
    """A random picture, ``side`` px square; every seed gives other bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def tree(*paths: str) -> dict[str, bytes]:
    """A picture of its own for each path."""
    return {path: picture(index) for index, path in enumerate(paths)}


def cats_and_dogs(train: int = 4, test: int = 2) -> dict[str, bytes]:
    """split/class/file with two classes."""
    counts = {"train": train, "test": test}
    return tree(
        *(
            f"{split}/{name}/{index:03d}.png"
            for split, count in counts.items()
            for name in ("cat", "dog")
            for index in range(count)
        )
    )


def write_folder(root: Path, files: Contents) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    root.mkdir(parents=True, exist_ok=True)
    return root


def write_tar(path: Path, files: Contents, mode: str = "w", extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info)
    return path


def write_zip(path: Path, files: Contents) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def everything() -> Iterator[bool]:
    return itertools.repeat(True)


def files_spec(layout: str = "auto") -> DatasetSpec:
    return DatasetSpec(source=FilesSourceSpec(layout=layout))


def read_source(path: object, layout: str = "auto") -> list[Item]:
    source = open_source(files_spec(layout), str(path))
    listed = list(source.listing())
    items = list(source.read(everything()))
    assert [(item.name, item.split, item.class_name) for item in listed] == [item[:3] for item in items]
    assert all(item.image is None for item in listed)
    return items


def facts(items: list[Item]) -> list[tuple[str, str, str | None]]:
    return [(item.name, item.split, item.class_name) for item in items]
