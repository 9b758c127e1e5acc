"""List and delete everything in a store, artifact or not, for housekeeping."""

import abc
import contextlib
import os
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, final

from typing_extensions import override  # of typing itself from Python 3.12 on

from ssl_backdoor.errors import translate_os_errors
from ssl_backdoor.store.base import CHECKPOINTS, MANIFEST, ArtifactRef, ArtifactStore, Manifest, missing_artifact
from ssl_backdoor.store.local import folder_of


class Entry(NamedTuple):
    """A file, empty folder, upload or link in a store."""

    name: str
    """Posix path relative to the root."""
    bytes: int
    changed_s: float
    """When it came there, in unix seconds by the store's clock."""
    kind: Literal["file", "empty folder", "upload", "link"] = "file"
    """An upload is one to S3 that has not ended: no object, yet paid for. A link may also be a device or a socket."""
    tag: str = ""
    """An upload's id; of an object its ETag: MD5 of its content (hex), where the server does not encrypt."""


class Contents(abc.ABC):
    """Everything in one store. Every method raises StoreError when the store cannot do its work."""

    @abc.abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Everything, in no order; links are named and not followed."""

    @abc.abstractmethod
    def manifest(self, ref: ArtifactRef, entry: Entry) -> Manifest:
        """The manifest of ``ref``, which lies there as ``entry``."""

    @abc.abstractmethod
    def clock_s(self) -> float:
        """Now, by the store's clock, as in ``Entry.changed_s``: a client's own may be wrong by any amount."""

    @abc.abstractmethod
    def delete_entries(self, entries: Sequence[Entry]) -> None:
        """Delete ``entries``, never the target of a link; one that is gone already is no error."""

    @abc.abstractmethod
    def delete_artifact(self, ref: ArtifactRef) -> None:
        """Delete a finished artifact: its manifest before its files, so that it is never half there."""


@final
class LocalContents(Contents):
    """A folder."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._folder = folder_of(store.root)

    @override
    def entries(self) -> Iterator[Entry]:
        waiting = [""]
        while waiting:
            with self._translate_os_errors():
                entries, folders = self._look(waiting.pop())
            waiting += folders
            yield from entries

    @override
    def manifest(self, ref: ArtifactRef, entry: Entry) -> Manifest:
        return self._store.manifest(ref)

    @override
    def clock_s(self) -> float:
        return time.time()

    @override
    def delete_entries(self, entries: Sequence[Entry]) -> None:
        with self._translate_os_errors():
            for each in entries:
                path = self._folder / each.name
                if each.kind == "file":
                    path.unlink(missing_ok=True)
                self._prune(path.parent if each.kind == "file" else path)

    @override
    def delete_artifact(self, ref: ArtifactRef) -> None:
        manifest = self._store.manifest(ref)
        place = self._folder / ref.stage / ref.key
        hidden = place.parent / f".{place.name}.{uuid.uuid4().hex}"  # an unfinished attempt, should this be interrupted
        with self._translate_os_errors():
            try:
                place.rename(hidden)
            except FileNotFoundError as error:
                raise missing_artifact(ref) from error
        names = [f"{ref.stage}/{hidden.name}/{name}" for name in (MANIFEST, *manifest.files)]
        self.delete_entries([Entry(name, 0, 0.0) for name in names])

    def _look(self, place: str) -> tuple[list[Entry], list[str]]:
        """The entries of one folder, and the names of its subfolders."""
        try:
            listed = list(os.scandir(self._folder / place))
            if not listed and place:
                return [Entry(place, 0, (self._folder / place).stat().st_ctime, "empty folder")], []
        except FileNotFoundError:
            return [], []  # a commit or another cleaning was faster
        entries, folders = [], []
        for each in listed:
            name = f"{place}/{each.name}" if place else each.name
            if each.is_dir(follow_symlinks=False):
                folders.append(name)
                continue
            with contextlib.suppress(FileNotFoundError):
                about = each.stat(follow_symlinks=False)
                plain = stat.S_ISREG(about.st_mode)
                # Copying and unpacking set an old time of modification, but not of this.
                entries.append(Entry(name, about.st_size * plain, about.st_ctime, "file" if plain else "link"))
        return entries, folders

    def _prune(self, folder: Path) -> None:
        """Remove ``folder`` and those above it that are empty, but for those of the stages."""
        with contextlib.suppress(OSError):  # not empty, or gone with another's cleaning
            while len(parts := folder.relative_to(self._folder).parts) > 1 + (CHECKPOINTS in parts[:1]):
                folder.rmdir()
                folder = folder.parent

    def _translate_os_errors(self) -> contextlib.AbstractContextManager[None]:
        return translate_os_errors(f"the store {self._store.root}")
