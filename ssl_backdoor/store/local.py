"""A store on a file system: one folder per artifact, moved into place by a single rename."""

import contextlib
import errno
import io
import itertools
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, final
from urllib.parse import unquote

from typing_extensions import override  # of typing itself from Python 3.12 on

from ssl_backdoor.errors import SpecError, StoreError, translate_os_errors
from ssl_backdoor.specs import Stage
from ssl_backdoor.store.base import (
    CHECKPOINTS,
    MANIFEST,
    ArtifactRef,
    ArtifactStore,
    Checkpoint,
    Manifest,
    Range,
    check_manifest_size,
    check_name,
    copy_file,
    digest_file,
    is_key,
    list_files,
    manifest_bytes,
    matches_checksum,
    missing_artifact,
    newest_first,
    parse_manifest,
    stale_checkpoints,
    warn_skipped,
)


def folder_of(uri: str) -> Path:
    """The folder that a plain path or a ``file://`` URI names; SpecError for another host's, and for no path at all."""
    is_plain = not uri.lower().startswith("file://")
    path = uri if is_plain else unquote(uri[len("file://") :].removeprefix("localhost"))
    if not path or "\0" in path:
        raise SpecError(f"expected a path or URI for the store, found {uri!r}; name a folder")
    if not is_plain and not path.startswith("/"):
        raise SpecError(f"expected file:///absolute/path for the store, found {uri}; write three slashes")
    try:
        return Path(path).expanduser().absolute() if is_plain else Path(path)
    except RuntimeError as error:
        raise SpecError(
            f"expected a path for the store, found {uri!r} of a user without a home; write it in full"
        ) from error
    except OSError as error:
        raise SpecError(
            "the working folder was removed: change to another, or write the store's path in full"
        ) from error


@final
class LocalStore(ArtifactStore):
    """Artifacts as ``folder/<stage>/<key>/``; unfinished ones are hidden next to them and harmless."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = folder.as_uri()
        with self._translate_os_errors():
            folder.mkdir(parents=True, exist_ok=True)

    @override
    def find(self, stage: Stage, key: str) -> ArtifactRef | None:
        ref = self.ref(stage, key)
        with self._translate_os_errors():
            return ref if (self._place(ref) / MANIFEST).is_file() else None

    @override
    def keys(self, stage: Stage, prefix: str = "") -> tuple[str, ...]:
        with self._translate_os_errors():
            found = (file.parent.name for file in (self._folder / stage).glob(f"*/{MANIFEST}") if file.is_file())
            return tuple(sorted(key for key in found if key.startswith(prefix) and is_key(key)))

    @override
    def manifest(self, ref: ArtifactRef) -> Manifest:
        ref = self.ref(ref.stage, ref.key)
        try:
            with self._translate_os_errors():
                file = self._place(ref) / MANIFEST
                check_manifest_size(ref, file.stat().st_size)
                data = file.read_bytes() if file.is_file() else b""  # a pipe would be waited for
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise missing_artifact(ref) from error
            raise
        return parse_manifest(data, ref)

    @override
    def fetch(self, ref: ArtifactRef, names: Sequence[str] | None = None) -> Path:
        place = self._place(ref)
        for name, entry in self.manifest(ref).choose(names).items():
            file = place / name
            with self._translate_os_errors():
                if file.is_file() and matches_checksum(file, entry):
                    continue
                size = f"{file.stat().st_size} bytes" if file.is_file() else "none"
            found = "other content" if size == f"{entry.bytes} bytes" else size
            raise StoreError(
                f"expected the file {name} of {entry.bytes} bytes with sha256 {entry.sha256} in {place.as_uri()}, "
                f"found {found}: it was damaged or altered; delete that artifact and run again"
            )
        return place

    @override
    def read(self, ref: ArtifactRef, ranges: Iterable[Range]) -> Iterator[bytes]:
        place = self._place(ref)
        for name, parts in itertools.groupby(ranges, key=lambda one: one.name):
            with self._translate_os_errors():
                file = _open_or_empty(place / check_name(name))
            with file:
                for _, offset, size in parts:
                    with self._translate_os_errors():
                        file.seek(offset)
                        data = file.read(size)
                    yield data

    @override
    def _commit_first(self, ref: ArtifactRef, files: Path, manifest: Mapping[str, Any]) -> bool:
        place = self._place(ref)
        with self._translate_os_errors(), _hidden_folder(place) as unfinished:
            entries = {name: copy_file(source, unfinished / name) for name, source in list_files(files).items()}
            _write(unfinished / MANIFEST, manifest_bytes(ref, entries, **manifest))
            _sync_folders(unfinished)
            try:
                os.rename(unfinished, place)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if not self.find(ref.stage, ref.key):  # no winner to adopt: something else lies there
                    raise StoreError(
                        f"expected no folder or a finished artifact at {ref.uri}, found a folder without a manifest; "
                        "remove it and run again"
                    ) from error
                return False
            _sync_folder(place.parent)
        return True

    @override
    def save_checkpoint(self, stage: Stage, key: str, step: int, file: Path) -> None:
        folder = self._checkpoints(stage, key)
        with self._translate_os_errors():
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = folder / f".{uuid.uuid4().hex}"
            try:
                saved = Checkpoint(step, copy_file(file, unfinished).sha256)
                os.replace(unfinished, folder / saved.name)
            finally:
                unfinished.unlink(missing_ok=True)
            _sync_folder(folder)
            for old in stale_checkpoints(newest_first(os.listdir(folder)), saved):
                (folder / old.name).unlink(missing_ok=True)

    @override
    def load_checkpoint(self, stage: Stage, key: str) -> tuple[int, Path] | None:
        folder = self._checkpoints(stage, key)
        with self._translate_os_errors():
            found = newest_first(os.listdir(folder) if folder.is_dir() else ())
            matching = (each for each in found if digest_file(folder / each.name).sha256 == each.sha256)
            used = next(matching, None)
        warn_skipped(self.ref(stage, key), found, used)
        return (used.step, folder / used.name) if used else None

    @override
    def drop_checkpoints(self, stage: Stage, key: str) -> None:
        folder = self._checkpoints(stage, key)
        with self._translate_os_errors():
            if folder.exists():
                shutil.rmtree(folder)

    @override
    def check(self) -> None:
        probe = self._folder / f".probe-{uuid.uuid4().hex}"
        with self._translate_os_errors():
            try:
                _write(probe, b"probe")
                if probe.read_bytes() != b"probe":
                    raise StoreError(f"expected to read back what was written to {self.root}; choose another place")
            finally:
                probe.unlink(missing_ok=True)

    def _place(self, ref: ArtifactRef) -> Path:
        return self._folder / ref.stage / self.ref(ref.stage, ref.key).key

    def _checkpoints(self, stage: Stage, key: str) -> Path:
        return self._folder / CHECKPOINTS / stage / self.ref(stage, key).key

    def _translate_os_errors(self) -> contextlib.AbstractContextManager[None]:
        return translate_os_errors(f"the store {self.root}")


def _open_or_empty(path: Path) -> BinaryIO:
    """Open a file; one that is gone is read as an empty one."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        return io.BytesIO()


@contextlib.contextmanager
def _hidden_folder(place: Path) -> Iterator[Path]:
    """A new hidden folder next to ``place``, for this attempt only; removed on exit unless it was renamed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = place.parent / f".{place.name}.{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a leftover is hidden and harmless; the block's own error matters


def _write(file: Path, data: bytes) -> None:
    """Write the new file ``file``; it is on the disk when this returns."""
    with file.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Fsync ``folder``."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folders(folder: Path) -> None:
    """Fsync ``folder`` and all folders below it."""
    for path, _, _ in os.walk(folder):
        _sync_folder(Path(path))
