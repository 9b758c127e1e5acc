"""A survey of a whole store: finished artifacts, unfinished ones, and files that this project did not write."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast, get_args

from ssl_backdoor.errors import StoreError
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.specs import Stage
from ssl_backdoor.store.base import CHECKPOINTS, MANIFEST, REQUESTS, ArtifactRef, ArtifactStore, Checkpoint, Manifest
from ssl_backdoor.store.contents import Contents, Entry, LocalContents
from ssl_backdoor.store.local import LocalStore
from ssl_backdoor.threads import parallel_map

_STAGE, _KEY, _ATTEMPT = "|".join(get_args(Stage)), "[0-9a-f]{64}", "[0-9a-f]{32}"
# Stricter than a store is: a folder of somebody's own that is called `train` is never taken for one of ours.
_ARTIFACT = re.compile(rf"({_STAGE})/({_KEY})(?:/(.+))?")
_HIDDEN = re.compile(rf"(?:{_STAGE})/\.{_KEY}\.{_ATTEMPT}(?=/|$)")
_CHECKPOINTS = re.compile(rf"{re.escape(CHECKPOINTS)}/({_STAGE})/({_KEY})(?:/(.+))?")
_PROBE = re.compile(rf"\.probe-{_ATTEMPT}")
_LAYOUT = re.compile(rf"{re.escape(CHECKPOINTS)}|(?:{re.escape(CHECKPOINTS)}/)?(?:{_STAGE})")

_REPORT_EVERY = 1000


def contents_of(store: ArtifactStore) -> Contents:
    """The contents of ``store``."""
    if isinstance(store, LocalStore):
        return LocalContents(store)
    from ssl_backdoor.store.s3 import S3Store  # boto3 takes a third of a second to import
    from ssl_backdoor.store.s3_contents import S3Contents

    if isinstance(store, S3Store):
        return S3Contents(store)
    raise TypeError(f"expected a store on a file system or on S3, found {type(store).__name__}")


@dataclass(frozen=True)
class Group:
    """Things that come and go together."""

    name: str
    """Where they lie, relative to the root."""
    entries: Sequence[Entry]

    @property
    def bytes(self) -> int:
        """Their sizes, summed."""
        return sum(each.bytes for each in self.entries)

    @property
    def changed_s(self) -> float:
        """When the newest came, in unix seconds by the store's clock."""
        return max(each.changed_s for each in self.entries)


@dataclass(frozen=True)
class Artifact:
    """A finished stage."""

    manifest: Manifest
    finished_s: float
    """When its manifest came, in unix seconds by the store's clock."""

    @property
    def bytes(self) -> int:
        """Sizes of its files, summed."""
        return sum(each.bytes for each in self.manifest.files.values())


@dataclass(frozen=True)
class Survey:
    """The contents of a store. Empty folders that belong to the layout are left out."""

    now_s: float
    """When this was, by the store's clock."""
    artifacts: dict[ArtifactRef, Artifact] = field(default_factory=dict)
    attempts: list[Group] = field(default_factory=list)
    """Parts that no manifest names: of commits that run now, that were interrupted, or that lost a race."""
    checkpoints: dict[ArtifactRef, Group] = field(default_factory=dict)
    """By the artifact they lead to, finished or not."""
    temporary: list[Group] = field(default_factory=list)
    """Half-written checkpoints and probes."""
    unreadable: dict[ArtifactRef, str] = field(default_factory=dict)
    """Artifacts whose manifest is there but cannot be read, with the reason."""
    unknown_files: list[Entry] = field(default_factory=list)
    """Files that no store writes: links too, and extra files in an artifact's folder."""


def survey(store: ArtifactStore, on_progress: OnProgress = silent) -> Survey:
    """List everything in ``store`` and read every manifest; nothing is written or changed.

    Raises:
        StoreError: the store cannot be read.
    """
    contents = contents_of(store)
    found = Survey(contents.clock_s())
    folders: dict[ArtifactRef, list[Entry]] = defaultdict(list)
    loose: dict[str, list[Entry]] = defaultdict(list)
    steps: dict[ArtifactRef, list[Entry]] = defaultdict(list)
    for count, entry in enumerate(contents.entries(), 1):
        if count % _REPORT_EVERY == 0:
            on_progress(Progress(count, 0, "files"))  # the total is not known before the end
        if entry.kind == "link":
            found.unknown_files.append(entry)
        elif artifact := _ARTIFACT.fullmatch(entry.name):
            folders[store.ref(cast(Stage, artifact[1]), artifact[2])].append(entry)
        elif hidden := _HIDDEN.match(entry.name):
            loose[hidden[0]].append(entry)
        elif checkpoint := _CHECKPOINTS.fullmatch(entry.name):
            _sort_checkpoint(entry, store.ref(cast(Stage, checkpoint[1]), checkpoint[2]), checkpoint[3], steps, found)
        elif _PROBE.fullmatch(entry.name):
            found.temporary.append(Group(entry.name, [entry]))
        elif entry.kind != "empty folder" or not _LAYOUT.fullmatch(entry.name):
            found.unknown_files.append(entry)
    found.checkpoints.update({ref: Group(_place(ref, CHECKPOINTS), entries) for ref, entries in steps.items()})
    _sort_folders(store, folders, loose, found, on_progress)
    found.attempts.extend(Group(name, entries) for name, entries in loose.items())
    return found


def step_of(checkpoints: Group) -> int:
    """The newest step among ``checkpoints``."""
    names = (each.name.rpartition("/")[2] for each in checkpoints.entries)
    return max(one.step for one in map(Checkpoint.parse, names) if one is not None)


def _sort_checkpoint(
    entry: Entry, ref: ArtifactRef, name: str | None, steps: dict[ArtifactRef, list[Entry]], found: Survey
) -> None:
    if name and entry.kind == "file" and Checkpoint.parse(name):
        steps[ref].append(entry)
    elif name is None or entry.kind == "upload" or re.fullmatch(rf"\.{_ATTEMPT}", name):
        found.temporary.append(Group(entry.name, [entry]))
    else:
        found.unknown_files.append(entry)


def _sort_folders(
    store: ArtifactStore,
    folders: dict[ArtifactRef, list[Entry]],
    loose: dict[str, list[Entry]],
    found: Survey,
    on_progress: OnProgress,
) -> None:
    """Separate finished artifacts from folders without a manifest."""
    finished = {
        ref: entry
        for ref, entries in folders.items()
        for entry in entries
        if entry.name == f"{_place(ref)}/{MANIFEST}" and entry.kind == "file"
    }
    manifests = dict(zip(finished, _manifests(store, finished, on_progress), strict=True))
    for ref, entries in folders.items():
        match manifests.get(ref):
            case Manifest() as manifest:
                found.artifacts[ref] = Artifact(manifest, finished[ref].changed_s)
                _sort_extra_files(ref, manifest, entries, loose, found)
            case str() as reason:
                found.unreadable[ref] = reason
            case None if ref not in finished:
                loose[_place(ref)].extend(entries)


def _sort_extra_files(
    ref: ArtifactRef, manifest: Manifest, entries: Iterable[Entry], loose: dict[str, list[Entry]], found: Survey
) -> None:
    """Sort the extra files in an artifact's folder: of other attempts, or unknown."""
    place = _place(ref)
    own = {f"{place}/{MANIFEST}", *("/".join(filter(None, (place, manifest.parts, name))) for name in manifest.files)}
    for entry in entries:
        attempt = entry.name.split("/")[2] if entry.name != place else ""
        if entry.kind == "upload":
            loose[entry.name].append(entry)
        elif entry.name not in own:
            foreign = manifest.parts and attempt != manifest.parts and re.fullmatch(_ATTEMPT, attempt)
            (loose[f"{place}/{attempt}"] if foreign else found.unknown_files).append(entry)


def _manifests(
    store: ArtifactStore, entries: Mapping[ArtifactRef, Entry], on_progress: OnProgress
) -> Iterator[Manifest | str | None]:
    """Each manifest, or why it cannot be read; None where it has gone meanwhile."""
    contents = contents_of(store)

    def read(ref: ArtifactRef) -> Manifest | str | None:
        try:
            return contents.manifest(ref, entries[ref])
        except StoreError as error:
            return None if store.find(ref.stage, ref.key) is None else str(error)

    for done, manifest in enumerate(parallel_map(read, entries, REQUESTS), 1):
        on_progress(Progress(done, len(entries), "manifests"))
        yield manifest


def _place(ref: ArtifactRef, above: str = "") -> str:
    return "/".join(filter(None, (above, ref.stage, ref.key)))
