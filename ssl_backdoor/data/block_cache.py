"""Blocks of remote files on this machine's disk, of bounded size: what was not used for longest is deleted first.

``$SSL_BACKDOOR_SOURCE_CACHE_GB`` is its size (8 if unset; 0 keeps nothing), the folder ``sources`` of the cache its
place. Nothing depends on it: a block that is damaged, or cannot be written, is read again from where it came.
"""

import contextlib
import hashlib
import os
import shutil
import threading
import uuid
from functools import cache
from pathlib import Path

from ssl_backdoor.errors import SpecError
from ssl_backdoor.store.base import cache_folder

_DEFAULT_GB = 8.0
_DIGEST_BYTES = 32
_LEAVE = 0.9
"""Of the bound, after a cleaning."""


def max_bytes() -> int:
    """The bound.

    Raises:
        SpecError: the environment names none.
    """
    given = os.environ.get("SSL_BACKDOOR_SOURCE_CACHE_GB") or str(_DEFAULT_GB)
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e6:
        raise SpecError(f"expected a number of gigabytes in SSL_BACKDOOR_SOURCE_CACHE_GB, found {given!r}")
    return int(gigabytes * 2**30)


def get(file: str, index: int) -> bytes | None:
    """Block ``index`` of ``file`` where it is here."""
    path = _path(file, index)
    with contextlib.suppress(OSError):  # nothing depends on it
        kept = path.read_bytes()
        if hashlib.sha256(kept[_DIGEST_BYTES:]).digest() == kept[:_DIGEST_BYTES]:
            os.utime(path)
            return kept[_DIGEST_BYTES:]
    return None


def put(file: str, index: int, data: bytes) -> None:
    """Keep a block; others are deleted where there is no room."""
    path, bound = _path(file, index), max_bytes()
    if len(data) > bound:
        return
    unfinished = path.parent / f".{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # a full disk, or another process that cleans: nothing depends on it
        _usage(path.parent.parent).make_room(len(data) + _DIGEST_BYTES, bound)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(hashlib.sha256(data).digest() + data)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def _path(file: str, index: int) -> Path:
    return cache_folder() / "sources" / hashlib.sha256(file.encode("utf-8", "surrogateescape")).hexdigest() / str(index)


class _Usage:
    """Bytes of one cache; other processes' are seen when there is no more room, or a twentieth of it was written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._left = 0

    def make_room(self, size: int, bound: int) -> None:
        with self._lock:
            self._left -= size
            if self._left < 0:
                self._clean(size, bound)

    def _clean(self, size: int, bound: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        found = sorted(
            ((status.st_mtime, status.st_size, path) for path in self._folder.glob("*/*") if (status := _status(path))),
            key=lambda one: one[0],
        )
        used = sum(one[1] for one in found)
        bound = min(bound, used + shutil.disk_usage(self._folder).free // 2)
        if used + size > bound:
            for _, freed, path in found:
                if used + size <= _LEAVE * bound:
                    break
                path.unlink(missing_ok=True)
                used -= freed
            for folder in self._folder.iterdir():
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()
        self._left = min(bound - used - size, bound // 20)


def _status(path: Path) -> os.stat_result | None:
    with contextlib.suppress(OSError):  # gone meanwhile
        return path.stat()
    return None


@cache
def _usage(folder: Path) -> _Usage:
    return _Usage(folder)
