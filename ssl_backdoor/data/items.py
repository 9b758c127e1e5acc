"""What every source of images gives: one image after the other, with its split, class and caption."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from ssl_backdoor.data.archives import is_hidden
from ssl_backdoor.data.images import UInt8Image

# A folder, shard or record of this name is that split.
SPLITS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp"})
_MAX_CLASS_NAME = 200  # characters


class Item(NamedTuple):
    """One image of a source."""

    name: str
    """Unique and stable: the relative path, or what stands for it."""
    split: str
    class_name: str | None = None
    caption: str | None = None
    """As found; of several captions one a line."""
    image: bytes | UInt8Image | None = None
    """Bytes as found, or pixels where there never were any; None in a listing."""
    problem: str = ""
    """Why the image is refused before it is looked at."""


class Source(Protocol):
    """Images in one fixed order, read twice: to decide, then to copy."""

    def listing(self) -> Iterator[Item]:
        """Every image, without its pixels and caption."""
        ...

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """The images that ``keep`` asks for: one answer an image, in the order of the listing."""
        ...


def suffix_of(name: str) -> str:
    """The extension in lower case; empty where there is none."""
    return name.rpartition("/")[2].partition(".")[2].rpartition(".")[2].lower()


def is_image(name: str) -> bool:
    """Whether the name is that of an image and not of a hidden file."""
    return suffix_of(name) in IMAGE_SUFFIXES and not is_hidden(name)


def printable(text: str) -> str:
    """``text`` without the lone surrogates that undecodable bytes leave."""
    return text.encode("utf-8", "replace").decode()


def class_name_of(value: object) -> str | None:
    """The class that a label names by text or number; None for none: empty, -1, too long, neither text nor number."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return None
    name = printable(str(value)).strip()
    return name if name and name != "-1" and len(name) <= _MAX_CLASS_NAME else None
