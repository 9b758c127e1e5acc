"""The contents of a bucket under a prefix: objects, and uploads that never ended."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, final

from typing_extensions import override  # of typing itself from Python 3.12 on

from ssl_backdoor.errors import StoreError
from ssl_backdoor.store.base import MANIFEST, REQUESTS, ArtifactRef, Manifest, cache_folder, parse_manifest
from ssl_backdoor.store.contents import Contents, Entry
from ssl_backdoor.store.s3 import S3Store
from ssl_backdoor.threads import parallel_map

_UNSUPPORTED_STATUSES = (403, 404, 405, 501)


@final
class S3Contents(Contents):
    """The objects of one store."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    @override
    def entries(self) -> Iterator[Entry]:
        with self._store.objects() as (client, bucket, prefix):
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                for each in page.get("Contents", ()):
                    name = each["Key"].removeprefix(prefix)
                    tag = each["ETag"].strip('"')
                    yield Entry(name, each["Size"], each["LastModified"].timestamp(), tag=tag)
            yield from _uploads(client, bucket, prefix)

    @override
    def manifest(self, ref: ArtifactRef, entry: Entry) -> Manifest:
        cached = cache_folder() / ref.stage / ref.key / MANIFEST
        with contextlib.suppress(OSError):  # thousands of requests are saved, and nothing depends on it
            data = cached.read_bytes()
            if hashlib.md5(data, usedforsecurity=False).hexdigest() == entry.tag:
                return parse_manifest(data, ref)
        manifest = self._store.manifest(ref)
        with contextlib.suppress(OSError):
            cached.parent.mkdir(parents=True, exist_ok=True)
            cached.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        return manifest

    @override
    def clock_s(self) -> float:
        with self._store.objects() as (client, bucket, prefix):
            answer = client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)["ResponseMetadata"]["HTTPHeaders"]
        if "date" not in answer:
            raise StoreError(f"expected the time of day with an answer of {self._store.root}, found none; use another")
        return parsedate_to_datetime(answer["date"]).timestamp()

    @override
    def delete_entries(self, entries: Sequence[Entry]) -> None:
        for _ in parallel_map(self._remove, entries, REQUESTS):
            pass

    @override
    def delete_artifact(self, ref: ArtifactRef) -> None:
        manifest = self._store.manifest(ref)
        place = f"{ref.stage}/{self._store.ref(ref.stage, ref.key).key}"
        self._remove(Entry(f"{place}/{MANIFEST}", 0, 0.0))
        self.delete_entries([Entry(f"{place}/{manifest.parts}/{name}", 0, 0.0) for name in manifest.files])

    def _remove(self, entry: Entry) -> None:
        with self._store.objects() as (client, bucket, prefix):
            key = prefix + entry.name
            if entry.kind != "upload":
                client.delete_object(Bucket=bucket, Key=key)
                return
            try:
                client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=entry.tag)
            except client.exceptions.NoSuchUpload:
                return  # it ended meanwhile


def _uploads(client: Any, bucket: str, prefix: str) -> Iterator[Entry]:
    """Uploads in parts that have not ended: a killed writer leaves them, no listing of objects shows them."""
    try:
        pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
        found = [each for page in pages for each in page.get("Uploads", ())]
    except client.exceptions.ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in _UNSUPPORTED_STATUSES:
            return  # these credentials may not look, or this server has no such question
        raise
    for each in found:
        key, upload_id, changed_s, size = each["Key"], each["UploadId"], each["Initiated"].timestamp(), 0
        try:
            parts = client.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload_id)
            for part in (part for page in parts for part in page.get("Parts", ())):
                size, changed_s = size + part["Size"], max(changed_s, part["LastModified"].timestamp())
        except client.exceptions.NoSuchUpload:
            continue  # it ended meanwhile
        yield Entry(key.removeprefix(prefix), size, changed_s, "upload", upload_id)
