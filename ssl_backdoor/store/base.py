"""The interface of an artifact store, and what every store shares: names, digests, the manifest.

An artifact is a folder of files and a ``manifest.json`` that is written last: where there is no manifest there is no
artifact. An artifact is never changed after that. Two runs that race on one key: the first manifest wins and the
other run adopts it. Other files under a key that is taken are refused.
"""

import abc
import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import from_json

from ssl_backdoor.errors import SpecError, SslBackdoorError, StoreError, translate_os_errors
from ssl_backdoor.events import log_event
from ssl_backdoor.specs import Spec, Stage

MANIFEST = "manifest.json"
CHECKPOINTS = ".checkpoints"
KEPT_CHECKPOINTS = 2
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_CHECKPOINT = re.compile(r"step-(\d+)\.([0-9a-f]{64})\.ckpt")
_CHUNK_BYTES = 1 << 20
_MAX_MANIFEST_BYTES = 1 << 26
REQUESTS = 8
"""At a time: a client of S3 keeps ten connections."""


class ArtifactRef(Spec):
    """Immutable pointer to a stage's result, finished or not yet."""

    stage: Stage
    key: str
    """``identity.artifact_key`` of the stage."""
    uri: str
    """``{root}/{stage}/{key}`` of the store it came from; for people, since a store goes by stage and key."""


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True)

    bytes: int = Field(ge=0, lt=2**63)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """The record of an artifact: its files, spec and inputs. Holds no absolute path, host name or secret."""

    model_config = ConfigDict(frozen=True)

    stage: Stage
    key: str
    spec: dict[str, Any]
    inputs: dict[str, str]
    """Role to the key of an input artifact, or to the digest of a source."""
    files: dict[str, FileEntry]
    """Relative posix path to size and digest."""
    summary: dict[str, Any]
    """Small results of the stage, plain JSON; a number that is not finite is ``null``."""
    versions: dict[str, str]
    created: str = ""
    """When it was committed: UTC, to the second. Not of artifacts that older versions made."""
    seconds: float = Field(ge=0, lt=1e10)
    parts: str = ""
    """Folder of the files, relative to the artifact: empty on a file system, the winning attempt's on S3."""

    @field_validator("files")
    @classmethod
    def _files_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        return {check_name(name): entry for name, entry in files.items()}

    @field_validator("parts")
    @classmethod
    def _parts_inside(cls, parts: str) -> str:
        return check_name(parts) if parts else parts

    @property
    def digest(self) -> str:
        """sha256 (hex) of the files' names and digests: equal for equal content, whoever made it and when."""
        lines = "".join(f"{entry.sha256}  {name}\n" for name, entry in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def choose(self, names: Sequence[str] | None) -> dict[str, FileEntry]:
        """The entries of ``names`` (all for None); StoreError naming those that the artifact does not hold."""
        if names is None:
            return self.files
        if missing := [name for name in names if name not in self.files]:
            raise StoreError(
                f"expected {', '.join(missing)} in {self.stage}/{self.key}, "
                f"found {', '.join(self.files) or 'nothing'}; ask for a file that it holds"
            )
        return {name: self.files[name] for name in names}


class Range(NamedTuple):
    """Some of the bytes of an artifact's file."""

    name: str
    offset: int
    size: int


class ArtifactStore(abc.ABC):
    """Storage of finished stages. Every method raises StoreError when the store cannot do its work."""

    root: str
    """The URI that opens this store again, from any folder; without credentials."""

    def ref(self, stage: Stage, key: str) -> ArtifactRef:
        """The pointer for ``stage`` and ``key``, whether finished or not. Pure; SpecError for an impossible key."""
        if stage not in get_args(Stage) or not _KEY.fullmatch(key):
            raise SpecError(
                f"expected a stage of {', '.join(get_args(Stage))} and a key of letters, digits, _ and -, "
                f"found {stage}/{key}; copy both from `ssl-backdoor show`"
            )
        return ArtifactRef(stage=stage, key=key, uri=f"{self.root}/{stage}/{key}")

    @abc.abstractmethod
    def find(self, stage: Stage, key: str) -> ArtifactRef | None:
        """The pointer when its manifest is present, else None."""

    @abc.abstractmethod
    def keys(self, stage: Stage, prefix: str = "") -> tuple[str, ...]:
        """Keys of the finished artifacts of ``stage`` that begin with ``prefix``, sorted."""

    @abc.abstractmethod
    def manifest(self, ref: ArtifactRef) -> Manifest:
        """The manifest of ``ref``; StoreError when it is absent, truncated or another artifact's."""

    @abc.abstractmethod
    def fetch(self, ref: ArtifactRef, names: Sequence[str] | None = None) -> Path:
        """A local folder that holds the files ``names`` (all for None) of ``ref``; do not write there.

        Each is the one that was committed, by its sha256: a remote file is verified when it is downloaded, and what
        lies on a disk once a process (a second a gigabyte), and again when it changes.
        """

    @abc.abstractmethod
    def read(self, ref: ArtifactRef, ranges: Iterable[Range]) -> Iterator[bytes]:
        """The bytes of each of ``ranges`` of the files of ``ref``, in order; nothing else is transferred.

        They are not verified: the caller must check their digests. A file that ends too soon or is gone gives fewer.
        """

    def commit(
        self,
        stage: Stage,
        key: str,
        files: Path,
        *,
        spec: dict[str, Any],
        inputs: dict[str, str],
        summary: dict[str, Any],
        seconds: float,
        adopts: bool = False,
    ) -> ArtifactRef:
        """Keep a copy of the folder ``files`` as the result of ``stage`` and ``key``: the parts, then the manifest.

        A crash before the manifest leaves nothing that can be found. What is there already stays. Absolute paths in
        ``spec``, ``inputs`` and ``summary`` are cut to their last name.

        Args:
            stage: which stage.
            key: ``identity.artifact_key``, or a name of your own.
            files: every file of the artifact.
            spec: of the manifest, as are ``inputs``, ``summary`` and ``seconds``.
            inputs: role to key.
            summary: small results.
            seconds: how long it took.
            adopts: where an artifact of this key is there already, or another run is first, take it whatever its bytes
                are: the key says all that they depend on.

        Raises:
            StoreError: the store cannot do its work, or (unless ``adopts``) has other files under this key.
        """
        ref = self.ref(stage, key)
        if self.find(stage, key) is None:
            manifest = {"spec": spec, "inputs": inputs, "summary": summary, "seconds": seconds}
            if self._commit_first(ref, files, manifest):
                return ref
        if not adopts:
            kept = self.manifest(ref).files
            with translate_os_errors(f"the folder {files}"):
                given = {name: digest_file(file) for name, file in list_files(files).items()}
            if other := sorted(name for name in kept.keys() | given.keys() if kept.get(name) != given.get(name)):
                raise StoreError(
                    f"expected the files that are kept as {ref.uri}, found others ({', '.join(other[:3])}): "
                    "an artifact is never changed, so commit under another key, such as one made of the files' digests"
                )
        return ref

    @abc.abstractmethod
    def _commit_first(self, ref: ArtifactRef, files: Path, manifest: Mapping[str, Any]) -> bool:
        """``commit`` where nothing was there; ``manifest`` are ``manifest_bytes``' fields. Whether it was the first."""

    @abc.abstractmethod
    def save_checkpoint(self, stage: Stage, key: str, step: int, file: Path) -> None:
        """Keep a copy of ``file`` as the state after ``step`` steps, atomically; only the two newest are kept."""

    @abc.abstractmethod
    def load_checkpoint(self, stage: Stage, key: str) -> tuple[int, Path] | None:
        """Step and file of the newest checkpoint whose digest matches; a damaged one is skipped with a warning.

        The newest is that of most steps, whatever the clocks of those who wrote them said.
        """

    @abc.abstractmethod
    def drop_checkpoints(self, stage: Stage, key: str) -> None:
        """Delete all checkpoints of ``stage`` and ``key``, if any."""

    @abc.abstractmethod
    def check(self) -> None:
        """Write, read and delete a probe; StoreError with one sentence when that fails."""


class Checkpoint(NamedTuple):
    """A checkpoint's step and the sha256 that its file must have: both are in its name."""

    step: int
    sha256: str

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"step-{self.step:06d}.{self.sha256}.ckpt"

    @classmethod
    def parse(cls, name: str) -> "Checkpoint | None":
        """The checkpoint called ``name``, or None where that is no checkpoint's name."""
        found = _CHECKPOINT.fullmatch(name)
        return cls(int(found.group(1)), found.group(2)) if found else None


def newest_first(names: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints among ``names``, by falling step."""
    return sorted(filter(None, map(Checkpoint.parse, names)), reverse=True)


def stale_checkpoints(checkpoints: Sequence[Checkpoint], saved: Checkpoint) -> list[Checkpoint]:
    """Those of ``checkpoints`` (newest first) to delete once ``saved`` is there: others of its step, and the oldest."""
    distinct = [each for each in checkpoints if each == saved or each.step != saved.step]
    kept = set(distinct[:KEPT_CHECKPOINTS]) | {saved}
    return [each for each in checkpoints if each not in kept]


def warn_skipped(ref: ArtifactRef, found: Sequence[Checkpoint], used: Checkpoint | None) -> None:
    """Log a warning that names the damaged ones of ``found`` (newest first); ``used`` is the first that is not."""
    if skipped := found[: found.index(used) if used else len(found)]:
        steps = ", ".join(f"{each.step:,}" for each in skipped)
        onwards = f"resumes from step {used.step:,}" if used else "starts again from step 0"
        about = {"stage": ref.stage, "key": ref.key}
        log_event(
            "damaged", f"checkpoints after steps {steps} are damaged and skipped; {onwards}", logging.WARNING, **about
        )


def cache_folder() -> Path:
    """Where fetched files are kept: ``$SSL_BACKDOOR_CACHE``, else ``~/.cache/ssl-backdoor``."""
    return Path(os.environ.get("SSL_BACKDOOR_CACHE") or "~/.cache/ssl-backdoor").expanduser().absolute()


def check_name(name: str) -> str:
    """``name`` when it is a relative posix path that stays inside its folder and is not the manifest's own.

    Raises:
        StoreError: otherwise.
    """
    escapes = any(part in ("", ".", "..") for part in name.split("/"))
    if escapes or "\\" in name or not name.isprintable() or name == MANIFEST:
        raise StoreError(
            f"expected a relative path inside the artifact, found the file name {name!r}; rename or remove that file"
        )
    return name


def list_files(folder: Path) -> dict[str, Path]:
    """Every file below ``folder`` by its checked, relative posix name, sorted; StoreError for links and devices."""
    if not folder.is_dir():
        raise StoreError(f"expected a folder of files to keep, found none at {folder}; run the stage again")
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise StoreError(f"expected plain files and folders, found a link or device at {path}; remove it")
        if path.is_file():
            found[check_name(path.relative_to(folder).as_posix())] = path
    return found


def digest_file(file: Path) -> FileEntry:
    """Size and sha256 of ``file``."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(bytes=size, sha256=digest.hexdigest())


def matches_checksum(file: Path, entry: FileEntry) -> bool:
    """Whether ``file`` has the size and sha256 of ``entry``; it is read once a process, and again when it changes."""
    found = file.stat()
    stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return found.st_size == entry.bytes and _sha256(file, stamp) == entry.sha256


@functools.cache
def _sha256(file: Path, stamp: tuple[int, ...]) -> str:
    """sha256 of ``file`` while it has ``stamp``: whatever a clock says, a write changes that."""
    return digest_file(file).sha256


def copy_file(source: Path, target: Path) -> FileEntry:
    """Copy ``source`` to the new file ``target``, on the disk when this returns; size and sha256 of what was copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return FileEntry(bytes=size, sha256=digest.hexdigest())


def manifest_bytes(
    ref: ArtifactRef,
    files: Mapping[str, FileEntry],
    *,
    spec: dict[str, Any],
    inputs: dict[str, str],
    summary: dict[str, Any],
    seconds: float,
    parts: str = "",
) -> bytes:
    """The manifest as it is stored."""
    manifest = Manifest(
        stage=ref.stage,
        key=ref.key,
        spec=_plain(spec),
        inputs=_plain(inputs),
        files=dict(files),
        summary=_plain(summary),
        versions=dict(versions()),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        seconds=seconds,
        parts=parts,
    )
    return manifest.model_dump_json(indent=1).encode()


def is_key(name: str) -> bool:
    """Whether a folder of this name may be an artifact's."""
    return _KEY.fullmatch(name) is not None


def check_manifest_size(ref: ArtifactRef, size: int) -> None:
    """Refuse to read what is too large for a manifest; StoreError naming it."""
    if size > _MAX_MANIFEST_BYTES:
        raise StoreError(
            f"expected a manifest of at most {_MAX_MANIFEST_BYTES:,} bytes of {ref.uri}, found {size:,}; "
            "delete that artifact and run again"
        )


def parse_manifest(data: bytes, ref: ArtifactRef) -> Manifest:
    """The manifest in ``data``; StoreError unless it is whole, finite, and that of ``ref``."""
    try:
        content = from_json(data, allow_inf_nan=False)
        json.dumps(content, allow_nan=False)  # a number may be out of range as well
        manifest = Manifest.model_validate(content)
    except (ValueError, StoreError) as error:
        raise StoreError(
            f"expected a whole manifest of {ref.uri}, found {len(data)} bytes that are not one; "
            "delete that artifact and run again"
        ) from error
    if (manifest.stage, manifest.key) != (ref.stage, ref.key):
        raise StoreError(
            f"expected the manifest of {ref.uri}, found that of {manifest.stage}/{manifest.key}; "
            "delete that artifact and run again"
        )
    return manifest


@contextlib.contextmanager
def explain_damage(ref: ArtifactRef) -> Iterator[None]:
    """Read in the block what is in ``ref``; StoreError naming it where that is not what its stage writes."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, FileNotFoundError) as error:
        if isinstance(error, SslBackdoorError):
            raise
        raise StoreError(
            f"{ref.uri} does not hold what a {ref.stage} artifact holds ({type(error).__name__}): it was damaged or "
            "altered; delete that artifact and run again"
        ) from error


def missing_artifact(ref: ArtifactRef) -> StoreError:
    """The error for an artifact that is not there."""
    return StoreError(f"expected an artifact at {ref.uri}, found no manifest; run its stage first or check the store")


@functools.cache
def versions() -> Mapping[str, str]:
    """Versions that a result may depend on, and the commit where the package is a checkout. Imports nothing."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("ssl-backdoor", "numpy", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        with contextlib.suppress(OSError):  # no git
            told = subprocess.run(asked, capture_output=True, text=True, check=False)
            found |= {"commit": told.stdout.strip()} if told.returncode == 0 else {}
    return found


def _plain(value: Any) -> Any:
    """``value`` as JSON data without absolute paths or non-finite numbers; TypeError for anything else."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case str():
            return PurePosixPath(value).name if value.startswith(("/", "file://")) else value
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    raise TypeError(f"expected plain JSON data for a manifest, found {type(value).__name__}: {value!r}")
