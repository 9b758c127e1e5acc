"""What every source of images gives: one image after the other, with its split, class and caption."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ssl_backdoor.data.archives import is_hidden
from ssl_backdoor.data.images import UInt8Image
from ssl_backdoor.data.splits import SplitWords

if TYPE_CHECKING:
    from ssl_backdoor.data.remote import SourcePath

IMAGE_SUFFIXES = frozenset(
    re.findall(
        r"\w+",
        "jpg jpeg jpe jfif pjpeg pjp png apng webp gif bmp dib tif tiff avif avifs heic heif ppm pgm pbm pnm jp2 jxl",
    )
)
SIDECARS = frozenset({"txt", "json", "cls"})
# Known not to be images: their bytes are not looked at.
_OTHER_SUFFIXES = frozenset(
    re.findall(
        r"\w+",
        "csv tsv jsonl ndjson parquet arrow feather xml yaml yml toml ini cfg md rst html htm pdf doc docx xls xlsx "
        "log lst npy npz npx pt pth ckpt safetensors pkl pickle mat h5 hdf5 mdb lmdb tfrecord tfrecords rec idx tar gz "
        "tgz bz2 xz zst zip 7z rar mp4 avi mov mkv webm mp3 wav flac ogg db lock sh py pyc ipynb c h cpp js css svg "
        "sha256 sha1 md5",
    )
)
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0|II\*\0|MM\0\*|"
    rb"....ftyp(avif|avis|heic|heix|mif1|msf1)|P[1-6]\s\s*[\d#]|\0\0\0\x0cjP  |\xff\x0a",
    re.DOTALL,
)
_EXAMPLES = 3
_MAX_KINDS = 100
_NAMED = 10


class Claim(NamedTuple):
    """What came with an image says of its bytes."""

    sha256: str
    """In hexadecimal. A downloader's is of the file before it was resized or encoded again."""
    phash: int | None
    """64 bits, as imagehash's phash."""


def claim_of(record: Mapping[str, Any]) -> Claim | None:
    """The fields sha256 and phash of a record; None where it has no sha256."""
    sha256, phash = (str(record.get(name) or "").lower() for name in ("sha256", "phash"))
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        return None
    return Claim(sha256, int(phash, 16) if re.fullmatch(r"[0-9a-f]{16}", phash) else None)


class Item(NamedTuple):
    """One image of a source."""

    name: str
    """Unique and stable: the relative path, or what stands for it."""
    split: str
    """train, test, eval, val, or ignore where it is to be left out."""
    class_name: str | None = None
    caption: str | None = None
    """As found; of several captions one a line."""
    image: bytes | UInt8Image | None = None
    """Bytes as found, or pixels where there never were any; None in a listing."""
    problem: str = ""
    """Why the image is refused before it is looked at."""
    claim: Claim | None = None
    archive: str = ""
    """The uncompressed tar that holds the bytes as they are, as a URI; "" where none does."""
    offset: int = -1
    """Of the bytes in it."""


class Ignored(NamedTuple):
    """Files of one kind that are no images."""

    num: int
    examples: tuple[str, ...]


@dataclass
class Found:
    """What a source was understood to be; whole once it was listed."""

    layout: str = ""
    """In words, such as "folders split/class"."""
    splits: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    """(where, word): the split that it means, and how many images it was said of, such as ("folder", "Testing")."""
    ignored: dict[str, Ignored] = field(default_factory=dict)
    """What is passed over, by kind: hidden, sidecar, a suffix such as ".csv", ..."""
    words: SplitWords | None = None
    """That the source reads names of splits with."""
    paths: "Sequence[SourcePath]" = ()
    """The files, archives and folders that are read."""

    def list_ignored(self) -> str:
        """What was passed over, for people."""
        kinds = (f"{one.num} {kind} (such as {one.examples[0]})" for kind, one in sorted(self.ignored.items()))
        return ", ".join(islice(kinds, _NAMED))

    def ignore(self, kind: str, name: str) -> None:
        """Count a file that is passed over."""
        if kind not in self.ignored and len(self.ignored) >= _MAX_KINDS:
            kind = "other"
        num, examples = self.ignored.get(kind, Ignored(0, ()))
        if num < _EXAMPLES:
            examples = (*examples, printable(name))
        self.ignored[kind] = Ignored(num + 1, examples)

    def count_split(self, where: str, word: str, split: str, count: int = 1) -> None:
        """Count images whose split was told by ``word``."""
        if len(self.splits) < _MAX_KINDS or (where, word) in self.splits:
            self.splits[where, word] = split, self.splits.get((where, word), ("", 0))[1] + count

    def clear(self) -> None:
        """Forget what was counted, before it is counted again."""
        self.splits.clear()
        self.ignored.clear()


class Source(Protocol):
    """Images in one fixed order, read twice: to decide, then to copy."""

    found: Found

    def listing(self) -> Iterator[Item]:
        """Every image, without its pixels and caption."""
        ...

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """The images that ``keep`` asks for: one answer an image, in the order of the listing."""
        ...


def suffix_of(name: str) -> str:
    """The extension in lower case, without what a download left behind it (jpg?w=640); empty where there is none."""
    suffix = name.rpartition("/")[2].partition(".")[2].rpartition(".")[2].lower()
    if suffix in IMAGE_SUFFIXES:
        return suffix
    suffix = name.rpartition("/")[2].partition("?")[0].partition(".")[2].rpartition(".")[2].lower()
    return re.split(r"[^a-z0-9]", suffix, maxsplit=1)[0]


def stem_of(name: str) -> str:
    """The path without the extension."""
    at = name.rfind(".")
    return name[:at] if at > name.rfind("/") + 1 else name


def is_image(name: str) -> bool:
    """Whether the name is that of an image and not of a hidden file."""
    return suffix_of(name) in IMAGE_SUFFIXES and not is_hidden(name)


def kind_of(name: str) -> str:
    """hidden, image, sidecar, unknown (its first bytes tell), or a suffix that no image has, such as ".csv"."""
    suffix = suffix_of(name)
    if is_hidden(name):
        return "hidden"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in SIDECARS:
        return "sidecar"
    return f".{suffix}" if suffix in _OTHER_SUFFIXES else "unknown"


def looks_like_image(head: bytes | None) -> bool:
    """Whether a file that begins with these bytes is an image, whatever its name."""
    return head is not None and _MAGIC.match(head) is not None


def printable(text: str) -> str:
    """``text`` without the lone surrogates that undecodable bytes leave."""
    return text.encode("utf-8", "replace").decode()
