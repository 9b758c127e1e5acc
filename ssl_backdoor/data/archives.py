"""Files out of a folder, a tar, a tar.gz or a zip, one after the other, whatever the archive tries."""

import gzip
import io
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, Protocol

from ssl_backdoor.errors import DataError

if TYPE_CHECKING:
    from ssl_backdoor.data.remote import SourceFile

MAX_MEMBER_BYTES = 160 * 2**20
"""The largest file that is read: CIFAR-100's training batch has 148 MiB."""
HEAD_BYTES = 64
MAX_HEADER_BYTES = 16 * 2**10
"""Of a tar member, with its extended headers: tarfile's time and memory grow with their square."""
_MAX_GLOBAL_FIELDS = 100
_MAX_PADDING_BYTES = 2**26  # of zeros behind the end mark of a tar
MAX_DEPTH = 64
"""Of folders in one another."""
_MAX_LINKS = 100
"""That lead to one folder: folders that link to one another have exponentially many paths."""
_MAX_UNPACKED_BYTES, _MAX_RATIO = 256 * 2**20, 100
"""An archive unpacks to at most the former, or that many times its own size."""
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
_BUFFER_BYTES = 2**20
# What tarfile, gzip and zipfile raise on damaged or hostile bytes.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    RuntimeError,
    NotImplementedError,
    LookupError,
    MemoryError,
    struct.error,
)


class Member(NamedTuple):
    """A regular file: its relative POSIX name, and its bytes where they were wanted and could be had."""

    name: str
    data: bytes | None = None
    problem: str = ""
    """Why ``data`` is missing although it was wanted."""
    offset: int = -1
    """Of ``data`` in the archive, where that holds it as it is: an uncompressed tar."""


Amount = bool | Literal["head"]
"""The whole of a file, nothing, or its first ``HEAD_BYTES``."""
Wanted = Callable[[str], Amount]


class Files(Protocol):
    """Regular files under one root, always in the same order; memory holds one at a time."""

    def members(self, wanted: Wanted) -> Iterator[Member]:
        """Every file in order, once; ``wanted`` is asked for each name, in order, how much of it to read."""
        ...


def read_none(_: str) -> bool:
    """Read no file: for a listing of names."""
    return False


def is_hidden(name: str) -> bool:
    """Files that systems leave behind: dot files and macOS resource forks."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def open_files(path: "SourceFile") -> Files:
    """The files of the folder or archive at ``path``; an archive is recognised by its first bytes, not by its name.

    Raises:
        DataError: ``path`` is neither a folder nor a tar, tar.gz or zip.
    """
    if isinstance(path, Path) and path.is_dir():
        return FolderFiles(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}): check its path and permissions") from error
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return ZipFiles(path)
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar" or path.suffix == ".tar":
        return TarFiles(path)
    raise DataError(f"{path} is neither a folder nor a tar, tar.gz or zip archive")


def _check_name(path: "SourceFile", name: str) -> None:
    """Refuse a member name that would leave the folder it is unpacked into."""
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise DataError(f"{path} holds the unsafe member {name!r}, which points outside of it: do not use this archive")


def _clean(name: str) -> str:
    """``name`` without ``.`` and empty parts."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


@contextmanager
def _translate_read_errors(path: "SourceFile") -> Iterator[None]:
    """Turn whatever damaged bytes raise into one sentence."""
    try:
        yield
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is truncated or damaged ({reason}): fetch or pack it again") from error


class FolderFiles:
    """The files below a folder, sorted by name at every level; symbolic links are followed, loops are not."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def members(self, wanted: Wanted) -> Iterator[Member]:
        """See ``Files``."""
        for name, path, problem in self._walk(str(self.root), "", (), Counter()):
            amount = wanted(name)
            if problem:
                yield Member(name, problem=problem)
            else:
                yield self.read(name, path, amount) if amount else Member(name)

    def walk(self) -> Iterator[tuple[str, str]]:
        """(relative name, path) of every regular file."""
        return ((name, path) for name, path, problem in self._walk(str(self.root), "", (), Counter()) if not problem)

    def _walk(
        self, folder: str, prefix: str, above: tuple[tuple[int, int], ...], links: Counter[tuple[int, int]]
    ) -> Iterator[tuple[str, str, str]]:
        """(relative name, path, why it is no regular file) of everything that is no folder."""
        try:
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            if here in above:
                return
            if os.path.islink(folder):
                links[here] += 1
            if len(above) > MAX_DEPTH:
                raise DataError(f"{folder:.200} lies more than {MAX_DEPTH} folders deep: give a folder further down")
            if links[here] > _MAX_LINKS:
                raise DataError(f"more than {_MAX_LINKS} links lead to the folder {folder:.200}: remove some")
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"cannot list the folder {folder} ({error.strerror}): check its permissions") from error
        for entry in entries:
            try:
                is_folder, is_file, problem = entry.is_dir(), entry.is_file(), ""
            except OSError as error:  # a link to itself
                is_folder, is_file, problem = False, False, f"cannot be read: {error.strerror}"
            if is_folder:
                yield from self._walk(entry.path, f"{prefix}{entry.name}/", (*above, here), links)
            else:
                if not (is_file or problem):
                    problem = "is no regular file" if os.path.exists(entry.path) else "is a link to nothing"
                yield prefix + entry.name, entry.path, problem

    @staticmethod
    def read(name: str, path: str, amount: Amount = True) -> Member:
        """The file at ``path``, called ``name``."""
        try:
            with open(path, "rb") as file:
                # a file of the kernel says 0 bytes, and may be read for ever
                limit = HEAD_BYTES if amount == "head" else MAX_MEMBER_BYTES + 1
                data = file.read(min(os.fstat(file.fileno()).st_size, limit))
        except OSError as error:
            return Member(name, problem=f"cannot be read: {error.strerror}")
        return limit_member(name, data, len(data))


def limit_member(name: str, data: bytes, size: int) -> Member:
    """A file of ``size`` bytes, with its data unless it is too large."""
    if size > MAX_MEMBER_BYTES:
        return Member(name, problem=f"is over the limit of {MAX_MEMBER_BYTES} bytes a file")
    return Member(name, data)


class _Forward(io.RawIOBase):
    """A file for ``tarfile`` that only goes forward, in bounded steps.

    Headers that claim a negative or an enormous size make ``tarfile`` loop or fill the memory; here they stop.
    """

    def __init__(self, file: BinaryIO, packed_bytes: int) -> None:
        self._file = file
        self._at = 0
        self.is_packed = packed_bytes > 0
        self._end = _MAX_UNPACKED_BYTES + _MAX_RATIO * packed_bytes
        self.header_left = MAX_HEADER_BYTES
        """Bytes that the next header may still take."""
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        self.header_left -= size
        if size < 0 or self.header_left < 0:
            raise ValueError(f"a header claims {size} bytes more, over {MAX_HEADER_BYTES} in all")
        self.last = self.read_content(size)
        return self.last

    def read_content(self, size: int) -> bytes:
        """``size`` bytes of a member, or fewer at the end of the archive."""
        data = self._file.read(size)
        self._at += len(data)
        if self.is_packed and self._at > self._end:
            raise ValueError(f"it unpacks to more than {_MAX_RATIO} times its size")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or offset < self._at:
            raise ValueError("a header points backwards")
        if not self.is_packed:
            self._at = self._file.seek(offset)
        while self._at < offset and self.read_content(min(_BUFFER_BYTES, offset - self._at)):
            pass
        return self._at

    def tell(self) -> int:
        return self._at


class TarFiles:
    """The files of a tar or tar.gz in archive order, streamed; links and devices are refused."""

    def __init__(self, path: "SourceFile") -> None:
        self.path = path

    def members(self, wanted: Wanted) -> Iterator[Member]:
        """See ``Files``."""
        with _translate_read_errors(self.path), self._open() as raw:
            forward = _Forward(raw, self.path.stat().st_size if isinstance(raw.raw, _OwningGzip) else 0)
            with tarfile.open(fileobj=forward, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    # tarfile would keep every header it has seen; its stubs hide the public list
                    tar.members = []  # type: ignore[attr-defined]
                    if len(tar.pax_headers) > _MAX_GLOBAL_FIELDS:
                        raise ValueError(f"over {_MAX_GLOBAL_FIELDS} fields in global headers")
                    self._check(info)
                    if info.isreg():
                        name = _clean(info.name)
                        amount = wanted(name)
                        yield self._read(forward, info, name, amount) if amount else Member(name)
                    forward.header_left = MAX_HEADER_BYTES
            # tarfile takes a damaged header for the end; the true end is a block of zeros
            if len(forward.last) != tarfile.BLOCKSIZE or any(forward.last):
                raise EOFError("no end-of-archive mark")
            self._check_rest(forward)

    def _check_rest(self, rest: _Forward) -> None:
        """Refuse what follows the end mark and is more than padding: a second archive, as ``cat`` puts it there."""
        num_bytes = 0
        while block := rest.read_content(tarfile.RECORDSIZE):
            num_bytes += len(block)
            if block.count(0) != len(block) or num_bytes > _MAX_PADDING_BYTES:
                raise DataError(
                    f"{self.path} goes on behind its end mark, as two archives joined by cat do: "
                    "unpack each (tar --ignore-zeros) and pack them as one, or give them one by one"
                )

    def _open(self) -> io.BufferedReader:
        file = self.path.open("rb")
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not is_gzip:
            return file
        return io.BufferedReader(_OwningGzip(file), _BUFFER_BYTES)

    def _check(self, info: tarfile.TarInfo) -> None:
        _check_name(self.path, info.name)
        if info.issparse() or not (info.isreg() or info.isdir()):
            kind = "link" if info.issym() or info.islnk() else "sparse file" if info.issparse() else "special file"
            raise DataError(f"{self.path} holds the {kind} {info.name!r}: pack regular files only")

    @staticmethod
    def _read(file: _Forward, info: tarfile.TarInfo, name: str, amount: Amount) -> Member:
        if info.size > MAX_MEMBER_BYTES and amount != "head":
            return limit_member(name, b"", info.size)
        file.seek(info.offset_data)
        size = min(info.size, HEAD_BYTES) if amount == "head" else info.size
        data = file.read_content(size)
        if len(data) != size:
            raise EOFError(f"it ends within {name!r}")
        return Member(name, data, offset=-1 if file.is_packed else info.offset_data)


class _OwningGzip(gzip.GzipFile):
    """A gzip reader that closes the file it was given."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._owned = file

    def close(self) -> None:
        super().close()
        self._owned.close()


class ZipFiles:
    """The files of a zip, sorted by name; links and encrypted members are refused."""

    def __init__(self, path: "SourceFile") -> None:
        self.path = path

    def members(self, wanted: Wanted) -> Iterator[Member]:
        """See ``Files``."""
        with _translate_read_errors(self.path), self.path.open("rb") as file, zipfile.ZipFile(file) as archive:
            packed_bytes = self.path.stat().st_size
            if sum(info.compress_size for info in archive.infolist()) > packed_bytes:
                raise ValueError("its members overlap")
            if sum(info.file_size for info in archive.infolist()) > _MAX_UNPACKED_BYTES + _MAX_RATIO * packed_bytes:
                raise ValueError(f"it unpacks to more than {_MAX_RATIO} times its size")
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                self._check(info)
                if not info.is_dir():
                    name = _clean(info.filename.replace("\\", "/"))
                    amount = wanted(name)
                    yield self._read(archive, info, name, amount) if amount else Member(name)

    def _check(self, info: zipfile.ZipInfo) -> None:
        _check_name(self.path, info.orig_filename)
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{self.path} holds the link or special file {info.filename!r}: pack regular files only")
        if info.compress_type not in _ZIP_METHODS:
            raise DataError(
                f"{self.path} is packed by method {info.compress_type} (member {info.filename!r}): pack it with deflate"
            )
        if info.flag_bits & 1:
            raise DataError(f"{self.path} is encrypted (member {info.filename!r}): unpack it first")

    def _read(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, amount: Amount) -> Member:
        if info.file_size > MAX_MEMBER_BYTES and amount != "head":
            return limit_member(name, b"", info.file_size)
        with archive.open(info) as content:  # never yields more than file_size bytes, then checks the CRC
            return Member(name, content.read(HEAD_BYTES if amount == "head" else MAX_MEMBER_BYTES + 1))
