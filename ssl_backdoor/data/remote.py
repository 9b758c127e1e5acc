"""Files of a source that lie elsewhere, on S3 or https: found, told apart by size and tag, read by ranges of bytes.

What is read is compared with what was found: a file whose size or tag (ETag, else time of change) is another one now is
an error, never data. Blocks that were read wait in a cache of bounded size (``block_cache``), since a source is read
more than once.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple
from urllib.parse import unquote

from typing_extensions import Buffer, override  # of the standard library from Python 3.12 on

from ssl_backdoor.data import block_cache
from ssl_backdoor.data.archives import HEAD_BYTES, MAX_MEMBER_BYTES, Member, Wanted, limit_member
from ssl_backdoor.data.transport import ListedFolder, Transport
from ssl_backdoor.errors import CREDENTIALS, DataError, needs_extra

BLOCK_BYTES = 4 * 2**20
_BLOCKS_AHEAD = 3
_FILES_AHEAD = 16
_SETTING = re.compile(r"AWS_|SSL_CERT_|NETRC$|HOME$|.*_PROXY$", re.IGNORECASE)
"""Variables that clients are made from."""
_transports: dict[tuple[bool, tuple[tuple[str, str], ...]], Transport] = {}
"""Those in use: whether of S3, and the variables that each was made from."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Stat(NamedTuple):
    """As of ``os.stat``."""

    st_size: int


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at ``address``, with as much of ``Path`` as readers of sources use."""

    address: str
    """Without secrets: credentials and queries are refused in addresses."""
    size: int
    tag: str

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """Its last part."""
        return PurePosixPath(self.address).name

    @property
    def stem(self) -> str:
        """Its last part without the suffix."""
        return PurePosixPath(self.address).stem

    @property
    def suffix(self) -> str:
        """Such as ".tar"."""
        return PurePosixPath(self.address).suffix

    @property
    def parent(self) -> PurePosixPath:
        """Of names alone."""
        return PurePosixPath(self.address).parent

    def absolute(self) -> "RemoteFile":
        """Itself."""
        return self

    def is_dir(self) -> Literal[False]:
        """It is a file."""
        return False

    def is_file(self) -> Literal[True]:
        """It is one."""
        return True

    def stat(self) -> Stat:
        """Its size."""
        return Stat(self.size)

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
        """The whole file, seekable, read block by block; the blocks that follow are read ahead."""
        return io.BufferedReader(_Blocks(self), 2**16)

    def read(self, offset: int, size: int) -> bytes:
        """These bytes alone.

        Raises:
            DataError: the file is another one now, or cannot be read.
        """
        answer = transport_of(self.address).read(self.address, offset, size)
        if (answer.size, answer.tag) != (self.size, self.tag):
            raise DataError(
                f"{self.address} changed while it was used: expected {self.size:,} bytes with the tag {self.tag}, "
                f"found {answer.size:,} with {answer.tag}; run again when nobody writes to it"
            )
        return answer.data

    def read_block(self, index: int) -> bytes:
        """Bytes from ``index`` * BLOCK_BYTES on, from the cache where it has them."""
        offset = index * BLOCK_BYTES
        size = min(BLOCK_BYTES, self.size - offset)
        name = f"{self.address}\0{self.size}\0{self.tag}", index
        data = block_cache.get(*name)
        if data is None or len(data) != size:
            data = self.read(offset, size)
            block_cache.put(*name, data)
        return data

    def read_through_cache(self, offset: int, size: int) -> bytes:
        """As ``read``, with whole blocks: for files that fit the cache and will be read again."""
        first, last = offset // BLOCK_BYTES, max(offset, offset + size - 1) // BLOCK_BYTES
        data = b"".join(map(self.read_block, range(first, last + 1)))
        return data[offset - first * BLOCK_BYTES :][:size]


@dataclass(frozen=True)
class RemoteFolder:
    """The objects below an address, as ``archives.Files`` in the order of a local folder."""

    address: str
    files: tuple[tuple[str, RemoteFile], ...]
    """(relative name, file)."""

    suffix = ""

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """Its last part."""
        return PurePosixPath(self.address).name

    def is_dir(self) -> Literal[True]:
        """It is a folder."""
        return True

    def is_file(self) -> Literal[False]:
        """It is none."""
        return False

    def members(self, wanted: Wanted) -> Iterator[Member]:
        """See ``Files``. Where one file after the other is wanted, those that follow are read ahead."""
        pool, ahead = ThreadPoolExecutor(_FILES_AHEAD, "objects"), dict[int, Future[Member]]()
        depth = 0
        try:
            for index, (name, file) in enumerate(self.files):
                amount = wanted(name)
                if amount is True:
                    for later in range(index, min(index + depth + 1, len(self.files))):
                        if later not in ahead:
                            ahead[later] = pool.submit(_read_member, *self.files[later])
                    depth = min(2 * depth + 1, _FILES_AHEAD - 1)
                    yield ahead.pop(index).result()
                    continue
                depth = 0
                ahead.pop(index, None)
                head = file.read(0, HEAD_BYTES) if amount and file.size else b""
                yield Member(name, head if amount else None)
        finally:
            pool.shutdown(cancel_futures=True)


SourcePath = Path | RemoteFile | RemoteFolder
SourceFile = Path | RemoteFile


def uri_of(path: SourcePath) -> str:
    """Where ``path`` is found from any folder: s3://, https:// or file:// and the absolute path."""
    return path.absolute().as_uri() if isinstance(path, Path) else str(path)


def relative_names(paths: Sequence[SourceFile]) -> list[str]:
    """The names of ``paths`` below the folder that is around them all."""
    whole = [str(path.absolute()) for path in paths]
    around = os.path.commonpath(map(os.path.dirname, whole))
    return [os.path.relpath(one, around) for one in whole]


def _read_member(name: str, file: RemoteFile) -> Member:
    if file.size > MAX_MEMBER_BYTES:
        return limit_member(name, b"", file.size)
    return Member(name, file.read_through_cache(0, file.size) if file.size else b"")


class _Blocks(io.RawIOBase):
    """A remote file for libraries that want a file object."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._at = 0
        self._index, self._data = -1, b""
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[bytes]] = {}

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return self._at

    @override
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        if self._at < 0:
            raise ValueError("expected a position inside the file, found one before it")
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self._file.size:
            return 0
        index, start = divmod(self._at, BLOCK_BYTES)
        data = self._load(index)[start : start + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _load(self, index: int) -> bytes:
        if index != self._index:
            is_next = index == self._index + 1
            waiting = self._ahead.pop(index, None)
            self._index, self._data = -1, b""
            self._data = waiting.result() if waiting else self._file.read_block(index)
            self._index = index
            for passed in [later for later in self._ahead if later < index]:
                self._ahead.pop(passed).cancel()
            if is_next:
                self._read_ahead(index + 1)
        return self._data

    def _read_ahead(self, index: int) -> None:
        last = (self._file.size - 1) // BLOCK_BYTES
        for later in range(index, min(index + _BLOCKS_AHEAD, last + 1)):
            if later not in self._ahead:
                self._pool = self._pool or ThreadPoolExecutor(_BLOCKS_AHEAD, "blocks")
                self._ahead[later] = self._pool.submit(self._file.read_block, later)

    @override
    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        super().close()


# ------------------------------------------------------------------------------------------------ addresses


def scheme_of(data: str) -> str:
    """s3, https or file of an address; "" of a plain path.

    Raises:
        DataError: another scheme, or an address with something in it that is not to be kept and shown.
    """
    if (found := _SCHEME.match(data)) is None:
        return ""
    scheme = found[1].lower()
    if scheme == "http":
        raise DataError("expected https:// for data, found http://, which anybody on the way can change: use https")
    if scheme not in ("s3", "https", "file"):
        raise DataError(f"expected a path, file://, s3:// or https:// for data, found {scheme}://: use one of those")
    if CREDENTIALS.search(data) or (scheme == "https" and re.search(r"[?#]", data)):
        raise DataError(
            "expected an address without credentials and without ? or #, since addresses are kept and shown: give keys "
            "of S3 in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, passwords for https in ~/.netrc"
        )
    return scheme


def file_path(address: str) -> Path:
    """The path that ``file:///absolute/path`` names.

    Raises:
        DataError: no absolute path, or another host's.
    """
    path = unquote(_SCHEME.sub("", address, count=1).removeprefix("localhost"))
    if not path.startswith("/") or "\0" in path:
        raise DataError(f"expected file:///absolute/path, found {address:.200}: write three slashes")
    return Path(path)


def find_remote(addresses: Sequence[str]) -> list[RemoteFile | RemoteFolder]:
    """What lies at each address of one scheme, in their order; a single one of S3 may be a folder.

    Raises:
        DataError: nothing is there, or it may not be read.
        SpecError: a package is missing.
    """
    return [
        RemoteFolder(one.address, tuple((name, RemoteFile(*file)) for name, file in one.files))
        if isinstance(one, ListedFolder)
        else RemoteFile(*one)
        for one in transport_of(addresses[0]).find(addresses)
    ]


def transport_of(address: str) -> Transport:
    """How the file at ``address`` is read.

    Raises:
        SpecError: a package is missing.
    """
    is_s3 = scheme_of(address) == "s3"
    settings = tuple(sorted(one for one in os.environ.items() if _SETTING.match(one[0])))
    if (is_s3, settings) not in _transports:
        with needs_extra("s3", "data on S3" if is_s3 else "data on https"):
            _transports[is_s3, settings] = _s3() if is_s3 else _https()
    return _transports[is_s3, settings]


def _s3() -> Transport:
    from ssl_backdoor.data.remote_s3 import S3Transport

    return S3Transport()


def _https() -> Transport:
    from ssl_backdoor.data.remote_https import HttpsTransport

    return HttpsTransport()


def flatten(paths: Iterable[SourcePath]) -> Iterator[SourceFile]:
    """The files of each, those of a remote folder one by one."""
    for path in paths:
        if isinstance(path, RemoteFolder):
            yield from (file for _, file in path.files)
        else:
            yield path
