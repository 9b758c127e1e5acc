"""Images that stay where they lie: an index names the file, place and digest of each, and they are read by ranges."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ssl_backdoor.data import block_cache
from ssl_backdoor.data.remote import RemoteFile, RemoteFolder, SourceFile, file_path, find_remote, scheme_of
from ssl_backdoor.errors import DataError
from ssl_backdoor.store.base import REQUESTS
from ssl_backdoor.threads import parallel_map

_MAX_READ_BYTES = 4 * 2**20
_MAX_GAP_BYTES = 64 * 2**10
"""Between images that are read at once: the headers and captions of a shard lie there."""


class _Group(NamedTuple):
    """Images of one file that are read at once: (offset, size, sha256) of each."""

    file: str
    images: list[tuple[int, int, str]]

    @property
    def end(self) -> int:
        return self.images[-1][0] + self.images[-1][1]


class Places:
    """The files that an index names.

    Args:
        table: sources.parquet of an ingest (SOURCES).
    """

    def __init__(self, table: Path) -> None:
        rows = pq.read_table(table).to_pydict()
        self._files: dict[str, SourceFile] = {
            uri: file_path(uri) if scheme_of(uri) == "file" else RemoteFile(uri, size, tag)
            for uri, size, tag in zip(rows["file"], rows["size"], rows["tag"], strict=True)
        }
        self._sizes = dict(zip(rows["file"], rows["size"], strict=True))
        self._remote = {uri: file for uri, file in self._files.items() if isinstance(file, RemoteFile)}
        self._fits_cache = sum(file.size for file in self._remote.values()) <= block_cache.max_bytes()

    def check(self) -> None:
        """Compare sizes and tags with what lies there now.

        Raises:
            DataError: a file is gone, cannot be read, or is another one now.
        """
        now: dict[str, RemoteFile | RemoteFolder | int] = {}
        for scheme in ("s3", "https"):
            if of_scheme := [uri for uri in self._remote if scheme_of(uri) == scheme]:
                now |= zip(of_scheme, find_remote(of_scheme), strict=True)
        for uri, file in self._files.items():
            if isinstance(file, Path):
                try:
                    now[uri] = file.stat().st_size
                except OSError as error:
                    raise _gone(uri, error) from error
            expected = self._sizes[uri] if isinstance(file, Path) else file
            if now[uri] != expected:
                raise DataError(
                    f"{uri:.500} is not the file that was indexed, its size or tag is another: give the data again "
                    "with --data, or restore them"
                )

    def read(self, rows: pa.Table) -> Iterator[bytes]:
        """The images at (shard, offset, size, sha256) of ``rows``, in their order; neighbours are read at once.

        Raises:
            DataError: a file cannot be read, or an image is not the one that was indexed.
        """
        for images in parallel_map(self._read_group, _groups(rows), REQUESTS if self._remote else 1):
            yield from images

    def _read_group(self, group: _Group) -> list[bytes]:
        begin, file = group.images[0][0], self._files[group.file]
        if isinstance(file, RemoteFile):
            read = file.read_through_cache if self._fits_cache else file.read
            data = read(begin, min(group.end, file.size) - begin)
        else:
            try:
                with file.open("rb") as opened:
                    opened.seek(begin)
                    data = opened.read(group.end - begin)
            except OSError as error:
                raise _gone(group.file, error) from error
        found = [data[offset - begin :][:size] for offset, size, _ in group.images]
        for image, (offset, _, sha256) in zip(found, group.images, strict=True):
            if hashlib.sha256(image).hexdigest() != sha256:
                raise DataError(
                    f"the image at byte {offset} of {group.file:.500} is not the one that was indexed, as the file "
                    "changed: give the data again with --data, or restore them"
                )
        return found


def _groups(rows: pa.Table) -> Iterator[_Group]:
    group = _Group("", [])
    for batch in rows.select(["shard", "offset", "size", "sha256"]).to_batches(max_chunksize=10_000):
        for shard, *image in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            offset, size, _ = image
            is_near = shard == group.file and 0 <= offset - group.end <= _MAX_GAP_BYTES
            if is_near and offset + size - group.images[0][0] <= _MAX_READ_BYTES:
                group.images.append((*image,))
                continue
            if group.images:
                yield group
            group = _Group(shard, [(*image,)])
    if group.images:
        yield group


def _gone(uri: str, error: OSError) -> DataError:
    return DataError(f"cannot read {uri:.500} ({error.strerror}): restore it, or give the data again with --data")
