"""One pass over the names of a folder or an archive: what kinds of files it holds, and where its images lie."""

import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from ssl_backdoor.data.archives import Amount, Files
from ssl_backdoor.data.cifar import cifar_set
from ssl_backdoor.data.items import Found, kind_of, looks_like_image, stem_of
from ssl_backdoor.errors import DataError

_LENGTH_BYTES = 4
_MAX_FOLDERS = 300_000
_MAX_NAMED = 1_000_000


class Scan:
    """What ``files`` hold. Memory: some twenty bytes an image and the names of its folders; names wait in a file.

    Of more than 300,000 folders the deepest are counted with the ones around them.
    """

    def __init__(self, files: Files) -> None:
        self.found = Found()
        self.folders: Counter[str] = Counter()
        """The images directly in each folder."""
        self.shards: list[str] = []
        """Tars."""
        self.parquets: list[str] = []
        self.cifar: dict[tuple[str, str], set[str]] = {}
        """(set, folder): the names of CIFAR's files there."""
        self.num_images = 0
        self.num_sidecars = 0
        self.is_numbered = True
        """Every image lies in a folder of five digits or more that its own number begins with, as img2dataset's do."""
        self._max_depth = 0
        self._verdicts = array("b")
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        weakref.finalize(self, self._kept.close)
        self._read(files)

    def _read(self, files: Files) -> None:
        image_stems, sidecar_stems = array("q"), array("q")
        kind = ""

        def look(name: str) -> Amount:
            nonlocal kind
            kind = kind_of(name)
            return "head" if kind == "unknown" else False

        for member in files.members(look):
            name = member.name
            if kind == "unknown":
                kind = self._judge(name, member.data)
            if kind == "image":
                self._add_image(name, member.problem)
                image_stems.append(hash(stem_of(name)))
                continue
            if kind == "sidecar":
                sidecar_stems.append(hash(stem_of(name)))
                kind = f".{name.rpartition('.')[2].lower()}"
            elif kind in (".tar", ".parquet"):
                named = self.shards if kind == ".tar" else self.parquets
                if len(named) >= _MAX_NAMED:
                    raise DataError(f"there are more than {_MAX_NAMED} {kind} files: give them in parts")
                named.append(name)
            self.found.ignore(kind, name)
        stems, beside = (np.unique(np.frombuffer(one, np.int64)) for one in (image_stems, sidecar_stems))
        self.num_sidecars = len(np.intersect1d(stems, beside, assume_unique=True))

    def _judge(self, name: str, head: bytes | None) -> str:
        """The kind of a file whose name does not tell."""
        folder, _, file = name.rpartition("/")
        self._verdicts.append(looks_like_image(head))
        if self._verdicts[-1]:
            return "image"
        if (kind := cifar_set(file)) is not None:
            self.cifar.setdefault((kind, folder), set()).add(file)
        dot, suffix = file.rpartition(".")[1:]
        return f".{suffix.lower()[:20]}" if dot else "no suffix"

    def _add_image(self, name: str, problem: str) -> None:
        folder, _, file = name.rpartition("/")
        self.num_images += 1
        if self._max_depth:
            folder = "/".join(folder.split("/")[: self._max_depth])
        self.folders[folder] += 1
        if len(self.folders) > _MAX_FOLDERS:
            self._fold()
        if self.is_numbered:
            leaf, stem = folder.rpartition("/")[2], file.partition(".")[0]
            self.is_numbered = len(leaf) >= 5 and leaf.isdecimal() and stem.isdecimal() and stem.startswith(leaf)
        for text in (name, problem):
            raw = text.encode("utf-8", "surrogateescape")
            self._kept.write(len(raw).to_bytes(_LENGTH_BYTES, "big") + raw)

    def _fold(self) -> None:
        self._max_depth = max(folder.count("/") for folder in self.folders)  # one level less
        if not self._max_depth:
            raise DataError(f"there are more than {_MAX_FOLDERS} folders of images beside one another")
        folded: Counter[str] = Counter()
        for folder, count in self.folders.items():
            folded["/".join(folder.split("/")[: self._max_depth])] += count
        self.folders = folded

    def folder_counts(self) -> dict[tuple[str, ...], int]:
        """The images directly in each folder, by the names from the root on."""
        return {tuple(folder.split("/")) if folder else (): count for folder, count in self.folders.items()}

    def names(self) -> Iterator[tuple[str, str]]:
        """(name, problem) of every image, in order."""
        self._kept.seek(0)
        while length := self._kept.read(_LENGTH_BYTES):
            name = self._kept.read(int.from_bytes(length, "big"))
            problem = self._kept.read(int.from_bytes(self._kept.read(_LENGTH_BYTES), "big"))
            yield name.decode("utf-8", "surrogateescape"), problem.decode()

    def is_image_again(self) -> Callable[[str], bool]:
        """Whether each name is an image's, for another pass over the same files in the same order."""
        verdicts = iter(self._verdicts)

        def is_image(name: str) -> bool:
            kind = kind_of(name)
            return bool(next(verdicts, 0)) if kind == "unknown" else kind == "image"

        return is_image
