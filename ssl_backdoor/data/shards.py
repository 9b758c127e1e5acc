"""WebDataset shards: USTAR archives of two or three members a sample, byte-identical on a second run."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import pyarrow as pa

from ssl_backdoor.errors import DataError

BLOCK = 512
_BUFFER_BYTES = 2**20
MAX_NAME = 100  # of a USTAR member without its prefix field, in bytes


class Location(NamedTuple):
    """Location of an image: ``offset`` and ``size`` in bytes inside the uncompressed ``shard``."""

    shard: str
    offset: int
    size: int


def _header(name: str, size: int) -> bytes:
    """A USTAR header: regular file, mode 0644, owner 0, mtime 0."""
    raw = name.encode("ascii")
    if not 0 < len(raw) <= MAX_NAME:
        raise ValueError(f"a member name has 1 to {MAX_NAME} bytes, found {name!r}")
    block = bytearray(BLOCK)
    block[: len(raw)] = raw
    block[100:148] = b"0000644\x000000000\x000000000\x00%011o\x0000000000000\x00" % size
    block[148:157] = b"        0"
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\x00 " % sum(block)
    return bytes(block)


def _member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    return _header(name, len(data)), data, bytes(-len(data) % BLOCK)


class ShardWriter:
    """Writes ``folder/{prefix}-000000.tar``, ``-000001.tar``, ...; ``prefix`` may name a sub-folder.

    A context manager: leaving it closes the last shard. Nothing is written until the first sample.
    """

    def __init__(self, folder: Path, prefix: str, samples_per_shard: int) -> None:
        self._folder = folder
        self._prefix = prefix
        self._samples_per_shard = samples_per_shard
        self._count = 0
        self._name = ""
        self._file: BinaryIO | None = None
        self._offset = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._finish()

    def write(
        self, key: str, image_bytes: bytes, suffix: str, meta: Mapping[str, Any], text: str | None = None
    ) -> Location:
        """Append ``{key}.{suffix}``, ``{key}.json`` and, unless ``text`` is None, ``{key}.txt``.

        Returns the location of the image's bytes.
        """
        file = self._shard()
        about = json.dumps(meta, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        parts = [*_member(f"{key}.{suffix}", image_bytes), *_member(f"{key}.json", about)]
        if text is not None:
            parts += _member(f"{key}.txt", text.encode())
        location = Location(self._name, self._offset + BLOCK, len(image_bytes))
        self._offset += file.write(b"".join(parts))
        self._count += 1
        return location

    def _shard(self) -> BinaryIO:
        if self._file is None or self._count % self._samples_per_shard == 0:
            self._finish()
            self._name = f"{self._prefix}-{self._count // self._samples_per_shard:06d}.tar"
            path = self._folder / self._name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=_BUFFER_BYTES)
            self._offset = 0
        return self._file

    def _finish(self) -> None:
        if self._file is not None:
            try:
                self._file.write(bytes(2 * BLOCK))
            finally:
                self._file.close()
                self._file = None


def read_bytes(folder: Path, rows: pa.Table) -> Iterator[bytes]:
    """The bytes at each row's (shard, offset, size), in row order; one file is open at a time.

    Raises:
        DataError: a shard is missing or shorter than its rows say.
    """
    name, file = "", None
    try:
        for batch in rows.select(["shard", "offset", "size"]).to_batches(max_chunksize=10_000):
            columns = (batch.column(index).to_pylist() for index in range(3))
            for shard, offset, size in zip(*columns, strict=True):
                if file is None or shard != name:
                    if file is not None:
                        file.close()
                    name, file = shard, _open_shard(folder / shard)
                file.seek(offset)
                data = file.read(size)
                if len(data) != size:
                    raise DataError(
                        f"shard {shard} ends before byte {offset + size}: it is truncated; ingest the data again"
                    )
                yield data
    finally:
        if file is not None:
            file.close()


def _open_shard(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot open the shard {path} ({error.strerror}); ingest the data again") from error
