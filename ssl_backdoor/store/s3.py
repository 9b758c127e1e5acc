"""A store on any S3-compatible object store (AWS, SeaweedFS, MinIO, Ceph ...).

Every commit uploads its parts under a prefix of its own attempt, ``<stage>/<key>/<attempt>/``, and then puts
``<stage>/<key>/manifest.json``, which names the attempt, on the condition that none is there (``If-None-Match: *``).
So two racers never mix, and what a crash leaves behind belongs to no manifest.
"""

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, final
from urllib.parse import urlsplit

import boto3
import botocore.session
from boto3.exceptions import Boto3Error, RetriesExceededError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as EndpointError
from botocore.loaders import create_loader
from typing_extensions import override  # of typing itself from Python 3.12 on

from ssl_backdoor.errors import SpecError, StoreAwayError, StoreError, translate_os_errors
from ssl_backdoor.specs import Stage
from ssl_backdoor.store.base import (
    CHECKPOINTS,
    MANIFEST,
    REQUESTS,
    ArtifactRef,
    ArtifactStore,
    Checkpoint,
    Manifest,
    Range,
    check_manifest_size,
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
from ssl_backdoor.threads import parallel_map

_TRIES = 8  # of one request, with growing pauses: an outage of up to half a minute or so is bridged
_PROBE_TRIES = 2
_BODY_TRIES = 3  # of an answer's body, where the client itself tries no more
_TIMEOUT_S = 20.0  # without a byte
_TRANSFER = TransferConfig(  # objects of 8 MiB or more are transferred in parts
    multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=4, num_download_attempts=_BODY_TRIES
)
_CONFLICT_TRIES = 5
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Asked directly, whatever proxy the environment names."""
_RIGHTS = {
    "PutObject": "s3:PutObject",
    "GetObject": "s3:GetObject (and s3:ListBucket: without it a missing object is refused too)",
    "HeadObject": "s3:GetObject",
    "DeleteObject": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
}
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
_NO_ANSWER = (EndpointError, HTTPClientError)
_FAILURES = (BotoCoreError, ClientError, Boto3Error)


class _AlteredError(StoreError):
    """An object's content does not have the digest it should have."""


_BROKEN_BODY = (_AlteredError, FlexibleChecksumError, IncompleteReadError, ResponseStreamingError)
T = TypeVar("T")


def cache_folder() -> Path:
    """Where fetched files are kept: ``$SSL_BACKDOOR_CACHE``, else ``~/.cache/ssl-backdoor``."""
    return Path(os.environ.get("SSL_BACKDOOR_CACHE") or "~/.cache/ssl-backdoor").expanduser().absolute()


@final
class S3Store(ArtifactStore):
    """Artifacts as objects under ``s3://bucket/prefix``; settings from the standard AWS chain."""

    def __init__(self, uri: str) -> None:
        bucket, _, prefix = uri[len("s3://") :].partition("/")
        if not bucket or "@" in bucket or ":" in bucket:  # the bucket is not shown: a secret may stand there
            raise SpecError(
                "expected s3://bucket/prefix for the store, found no bucket or credentials in its place; "
                "give credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        prefix = prefix.strip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self.root = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client = _client(_TRIES)

    @override
    def find(self, stage: Stage, key: str) -> ArtifactRef | None:
        ref = self.ref(stage, key)
        return ref if self._read(self._key(ref, MANIFEST)) is not None else None

    @override
    def keys(self, stage: Stage, prefix: str = "") -> tuple[str, ...]:
        names = (name.removeprefix(self._prefix).split("/") for name in self._list(f"{self._prefix}{stage}/{prefix}"))
        return tuple(sorted(part[1] for part in names if part[2:] == [MANIFEST] and is_key(part[1])))

    @override
    def manifest(self, ref: ArtifactRef) -> Manifest:
        ref = self.ref(ref.stage, ref.key)
        data = self._read(self._key(ref, MANIFEST), lambda size: check_manifest_size(ref, size))
        if data is None:
            raise missing_artifact(ref)
        return parse_manifest(data, ref)

    @override
    def fetch(self, ref: ArtifactRef, names: Sequence[str] | None = None) -> Path:
        manifest = self.manifest(ref)
        folder = cache_folder() / ref.stage / ref.key / manifest.digest[:16]
        for name, entry in manifest.choose(names).items():
            with _translate_cache_errors():
                is_cached = (folder / name).is_file() and matches_checksum(folder / name, entry)
            if not is_cached:
                self._download(self._key(ref, manifest.parts, name), folder / name, entry.sha256)
        with _translate_cache_errors():
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @override
    def read(self, ref: ArtifactRef, ranges: Iterable[Range]) -> Iterator[bytes]:
        parts = self.manifest(ref).parts

        def one(wanted: Range) -> bytes:
            last = wanted.offset + wanted.size - 1
            return self._read(self._key(ref, parts, wanted.name), Range=f"bytes={wanted.offset}-{last}") or b""

        return parallel_map(one, ranges, REQUESTS)

    @override
    def _commit_first(self, ref: ArtifactRef, files: Path, manifest: Mapping[str, Any]) -> bool:
        attempt = uuid.uuid4().hex
        with translate_os_errors(f"the folder {files}"):
            sources = list_files(files)
            entries = {name: digest_file(source) for name, source in sources.items()}
        data = manifest_bytes(ref, entries, **manifest, parts=attempt)
        keys = {self._key(ref, attempt, name): source for name, source in sources.items()}
        try:
            for object_key, source in keys.items():
                self._upload(source, object_key)
        except BaseException:
            self._discard(list(keys))
            raise
        # After this point, delete uploaded parts only if a competing manifest won: a put whose answer was lost may have
        # succeeded, and its own retry then finds the manifest of this very attempt.
        if not self._put_first(self._key(ref, MANIFEST), data) and self.manifest(ref).parts != attempt:
            self._discard(list(keys))
            return False
        return True

    @override
    def save_checkpoint(self, stage: Stage, key: str, step: int, file: Path) -> None:
        folder = self._checkpoints(stage, key)
        with translate_os_errors(f"the file {file}"):
            saved = Checkpoint(step, digest_file(file).sha256)
        self._upload(file, folder + saved.name)
        names = [each.removeprefix(folder) for each in self._list(folder)]
        self._delete([folder + old.name for old in stale_checkpoints(newest_first(names), saved)])

    @override
    def load_checkpoint(self, stage: Stage, key: str) -> tuple[int, Path] | None:
        folder, cache = self._checkpoints(stage, key), self._checkpoint_cache(stage, key)
        found, used = newest_first([each.removeprefix(folder) for each in self._list(folder)]), None
        for each in found:
            with contextlib.suppress(_AlteredError):  # the older one serves
                self._download(folder + each.name, cache / each.name, each.sha256)
                used = each
                break
        warn_skipped(self.ref(stage, key), found, used)
        return (used.step, cache / used.name) if used else None

    @override
    def drop_checkpoints(self, stage: Stage, key: str) -> None:
        self._delete(self._list(self._checkpoints(stage, key)))
        with _translate_cache_errors():
            folder = self._checkpoint_cache(stage, key)
            if folder.exists():
                shutil.rmtree(folder)

    @override
    def check(self) -> None:
        key, client = f"{self._prefix}.probe-{uuid.uuid4().hex}", _client(_PROBE_TRIES)
        try:
            with self._translate_errors():
                self._put_first(key, b"probe", client)
        except StoreError as error:
            if isinstance(error.__cause__, ClientError) and self._takes_without_checksums(key):
                raise StoreError(
                    f"{self.root} refuses the checksums that new clients of S3 send: "
                    "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
                ) from error
            raise
        with self._translate_errors():
            try:
                read = client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
                conditional = not self._put_first(key, b"probe", client)
                client.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1)
                missing = self._read(f"{key}-that-is-not-there", client=client)
            finally:
                client.delete_object(Bucket=self._bucket, Key=key)
        if read != b"probe" or not conditional or missing is not None:
            raise StoreError(
                f"expected {self.root} to give back what was put and to honour If-None-Match, found that it does not; "
                "use an object store that does (AWS S3, SeaweedFS, MinIO, Ceph)"
            )

    def _takes_without_checksums(self, key: str) -> bool:
        with contextlib.suppress(StoreError), self._translate_errors():
            client = _client(1, request_checksum_calculation="when_required")
            self._put_first(key, b"probe", client)
            client.delete_object(Bucket=self._bucket, Key=key)
            return True
        return False

    # ------------------------------------------------------------------------------------------- objects

    @contextlib.contextmanager
    def objects(self) -> Iterator[tuple[Any, str, str]]:
        """boto3's client, the bucket and the prefix of this store, for housekeeping; its errors become StoreErrors."""
        with self._translate_errors():
            yield self._client, self._bucket, self._prefix

    def _key(self, ref: ArtifactRef, *names: str) -> str:
        return self._prefix + "/".join((ref.stage, self.ref(ref.stage, ref.key).key, *filter(None, names)))

    def _checkpoints(self, stage: Stage, key: str) -> str:
        return f"{self._prefix}{CHECKPOINTS}/{stage}/{self.ref(stage, key).key}/"

    def _checkpoint_cache(self, stage: Stage, key: str) -> Path:
        store = hashlib.sha256(f"{self._client.meta.endpoint_url} {self.root}".encode()).hexdigest()[:16]
        return cache_folder() / CHECKPOINTS / store / stage / key

    def _read(
        self, key: str, check_size: Callable[[int], None] | None = None, client: Any = None, **more: str
    ) -> bytes | None:
        """The object's bytes, or None where there is no such object (a missing bucket is an error)."""

        def read() -> bytes:
            answer = (client or self._client).get_object(Bucket=self._bucket, Key=key, **more)
            if check_size is not None:
                check_size(answer["ContentLength"])
            return cast(bytes, answer["Body"].read())

        with self._translate_errors():
            try:
                return _whole(read)
            except ClientError as error:
                if _code(error) in ("NoSuchKey", "404"):  # some servers and proxies send no body
                    return None
                raise

    def _upload(self, file: Path, key: str) -> None:
        # In this order: boto3's timeouts are OSErrors too.
        with translate_os_errors(f"the file {file}"), self._translate_errors():
            self._client.upload_file(str(file), self._bucket, key, Config=_TRANSFER)

    def _put_first(self, key: str, data: bytes, client: Any = None) -> bool:
        """Put the object unless there is one; whether there was none.

        False is no proof of another writer: where the answer to this put was lost, its own repetition finds it there.
        """
        with self._translate_errors():
            for wait_s in (0.1 * 2**i for i in range(_CONFLICT_TRIES)):
                try:
                    (client or self._client).put_object(Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    match _status(error):
                        case 412:
                            return False
                        case 409:  # somebody is writing or deleting it at this moment: S3 asks to try again
                            time.sleep(wait_s)
                        case _:
                            raise
        raise StoreError(f"cannot write to {self.root}: {_CONFLICT_TRIES} conflicts with other writers; run again")

    def _download(self, key: str, file: Path, sha256: str) -> None:
        """Download an object to ``file``, atomically, and check its digest ``sha256``."""
        unfinished = file.parent / f".{uuid.uuid4().hex}"
        with _translate_cache_errors():
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with self._translate_errors():
                    _whole(lambda: self._download_once(key, unfinished, sha256))
                os.replace(unfinished, file)
            finally:
                unfinished.unlink(missing_ok=True)

    def _download_once(self, key: str, file: Path, sha256: str) -> None:
        """Download an object and check its digest, without retries."""
        try:
            self._client.download_file(self._bucket, key, str(file), Config=_TRANSFER)
            found = digest_file(file).sha256
        except FlexibleChecksumError:
            found = "content that does not fit its checksum"
        if found != sha256:
            raise _AlteredError(
                f"expected sha256 {sha256} of s3://{self._bucket}/{key}, found {found}: "
                "it was altered or cut short; delete that artifact and run again"
            )

    def _list(self, prefix: str) -> list[str]:
        with self._translate_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def _delete(self, keys: Sequence[str]) -> None:
        with self._translate_errors():
            for key in keys:
                self._client.delete_object(Bucket=self._bucket, Key=key)

    def _discard(self, keys: Sequence[str]) -> None:
        """Delete a lost attempt's objects as far as possible; what stays belongs to no manifest and is harmless."""
        with contextlib.suppress(StoreError), self._translate_errors():
            client = _client(_PROBE_TRIES)
            for key in keys:
                client.delete_object(Bucket=self._bucket, Key=key)

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turn boto3's exceptions into a StoreError of one sentence, without the server's text (secrets)."""
        try:
            yield
        except _FAILURES as error:
            cause = _root_cause(error)
            raise (StoreAwayError if _is_away(cause) else StoreError)(self._sentence(cause)) from error

    def _sentence(self, error: BaseException) -> str:
        address = urlsplit(self._client.meta.endpoint_url)
        place = f"{self.root} at {address.scheme}://{address.netloc.rpartition('@')[2]}"
        if isinstance(error, _NO_CREDENTIALS):
            return f"no credentials for {place}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        if isinstance(error, _NO_ANSWER):
            return f"cannot reach {place}; check AWS_ENDPOINT_URL and that the object store runs"
        if not isinstance(error, ClientError):
            return f"cannot use {place} ({type(error).__name__}); check the AWS settings and try again"
        code, status = _code(error), _status(error)
        if code == "NoSuchBucket":
            return f"expected the bucket of {place}, found none; create it or name another"
        if code == "RequestTimeTooSkewed":
            return (
                f"expected the clock of this machine to be that of {place} within 15 minutes, found it further off; "
                "set the clock and run again"
            )
        # Other servers name nothing: without a body the code is the status. Of object stores a 403 may have none.
        if code == "401" or (error.operation_name == "PutObject" and code in ("404", "405")):
            return f"{place} answers {code}, as no object store does; check AWS_ENDPOINT_URL"
        if status == 501:
            return (
                f"{place} does not know what {error.operation_name} asks for ({code}): it is no object store (check "
                "AWS_ENDPOINT_URL), or has no conditional writes (If-None-Match; AWS S3, SeaweedFS, MinIO and Ceph do)"
            )
        if status in (401, 403):
            right = _RIGHTS.get(error.operation_name, error.operation_name)
            return (
                f"{place} refuses these credentials ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their "
                f"right to {right} on the bucket"
            )
        if status == 404:
            return f"expected an object in {place}, found it gone; delete the artifact it belongs to and run again"
        return f"{place} answered {code} ({status}); try again, or look at the object store's log"


@cache
def _loader(data_path: str | None) -> Any:
    """What reads botocore's descriptions of S3 and its endpoints, megabytes of JSON: once for all clients."""
    return create_loader(data_path)


def _client(tries: int, **more: Any) -> Any:
    """A boto3 client from the standard AWS chain that makes each request up to ``tries`` times."""
    config = Config(
        retries={"mode": "standard", "total_max_attempts": tries},
        s3={"addressing_style": "path"},
        connect_timeout=5,
        read_timeout=_TIMEOUT_S,
        **more,
    )
    try:
        core = botocore.session.get_session()
        core.register_component("data_loader", _loader(core.get_config_variable("data_path")))
        session = boto3.session.Session(botocore_session=core)
        client = session.client("s3", region_name=session.region_name or "us-east-1", config=config)
        if "proxies" not in more and urlsplit(client.meta.endpoint_url).hostname in _LOOPBACK:
            return _client(tries, **more, proxies={})
        return client
    except (BotoCoreError, ValueError) as error:
        raise StoreError(
            f"cannot set up S3 access ({type(error).__name__}); "
            "check AWS_ENDPOINT_URL, AWS_PROFILE and the AWS configuration files"
        ) from error


def _whole(read: Callable[[], T]) -> T:
    """What ``read`` returns, tried again where the body of an answer broke off or came altered."""
    for _ in range(_BODY_TRIES - 1):
        with contextlib.suppress(*_BROKEN_BODY):
            return read()
    return read()


def _root_cause(error: BaseException) -> BaseException:
    """The root cause of errors that boto3's transfers wrap."""
    if isinstance(error, RetriesExceededError):
        return cast(BaseException, error.last_exception)
    return error.__context__ if isinstance(error, Boto3Error) and error.__context__ else error


def _is_away(error: BaseException) -> bool:
    """Whether the same may succeed later: no answer, one cut short, or one that asks for patience."""
    if isinstance(error, ClientError):
        return _status(error) == 429 or (_status(error) >= 500 and _status(error) != 501)
    return isinstance(error, (*_NO_ANSWER, IncompleteReadError, ResponseStreamingError))


def _code(error: ClientError) -> str:
    """The name of what went wrong; the status where the answer had no body."""
    return str(error.response.get("Error", {}).get("Code", "no code"))


def _status(error: ClientError) -> int:
    return cast(int, error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _translate_cache_errors() -> contextlib.AbstractContextManager[None]:
    return translate_os_errors(f"the cache folder {cache_folder()} (SSL_BACKDOOR_CACHE)")
