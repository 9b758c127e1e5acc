"""Data on S3: settings and credentials from the standard AWS chain, as the store's."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from botocore.exceptions import ClientError, IncompleteReadError

from ssl_backdoor.data.transport import Answer, Listed, ListedFolder
from ssl_backdoor.errors import DataError, SourceAwayError
from ssl_backdoor.store.s3_client import TRIES, make_client, read_whole, status_of, translate_s3_errors

_MAX_OBJECTS = 1_000_000
_CONNECTIONS = 32


class S3Transport:
    """Objects; the server is the one that the environment names, never one that data name."""

    def __init__(self) -> None:
        self._client = make_client(TRIES, max_pool_connections=_CONNECTIONS)

    def find(self, addresses: Sequence[str]) -> list[Listed | ListedFolder]:
        """See ``Transport``."""
        if len(addresses) == 1:
            return [self._find_one(addresses[0])]
        found: dict[str, Listed | ListedFolder] = {}
        for bucket in dict.fromkeys(_part(address)[0] for address in addresses):
            keys = sorted(_part(address)[1] for address in addresses if _part(address)[0] == bucket)
            wanted = set(keys)
            prefix = os.path.commonprefix([keys[0], keys[-1]])  # noqa: RUF071 - of characters, as S3 lists
            for key, file in self._list(bucket, prefix):
                if key in wanted:
                    found[file.address] = file
                if key >= keys[-1]:
                    break
        spelt = ["s3://{}/{}".format(*_part(address)) for address in addresses]
        if missing := [address for address in spelt if address not in found]:
            raise DataError(
                f"there is nothing at {missing[0]:.500} ({len(missing)} of {len(spelt)} names of the pattern): check it"
            )
        return [found[address] for address in spelt]

    def read(self, address: str, offset: int, size: int) -> Answer:
        """See ``Transport``."""
        bucket, key = _part(address)

        def once() -> Answer:
            answer = self._client.get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-{offset + size - 1}")
            data = answer["Body"].read()
            begin, _, total = answer.get("ContentRange", "").removeprefix("bytes ").partition("/")
            if not total.isdigit() or not begin.startswith(f"{offset}-"):
                raise DataError(f"expected the asked bytes of {address}, found all: its server does not know ranges")
            if len(data) != min(size, int(total) - offset):
                raise IncompleteReadError(actual_bytes=len(data), expected_bytes=size)
            return Answer(data, int(total), str(answer["ETag"]).strip('"'))

        with translate_s3_errors(self._client, f"s3://{bucket}", DataError, SourceAwayError):
            try:
                return read_whole(once)
            except ClientError as error:
                if status_of(error) in (404, 416):
                    what = "is gone" if status_of(error) == 404 else "is shorter than it was"
                    raise DataError(f"{address} {what}: restore it, or ingest what is there now") from error
                raise

    def _find_one(self, address: str) -> Listed | ListedFolder:
        bucket, key = _part(address)
        if key and not key.endswith("/"):
            for found, file in self._list(bucket, key):
                if found == key:
                    return file
                break  # the object itself would be the first
            key += "/"
        files = {}
        for found, file in self._list(bucket, key):
            name = found.removeprefix(key)
            if found.endswith("/"):  # a mark that some tools leave for a folder
                continue
            if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name or "\0" in name:
                raise DataError(
                    f"s3://{bucket}/{key} holds {name!r:.200}, which no folder can hold: rename or remove it"
                )
            files[name] = file
            if len(files) > _MAX_OBJECTS:
                raise DataError(f"there are more than {_MAX_OBJECTS:,} objects at {address:.500}: pack them as shards")
        if not files:
            raise DataError(f"there is nothing at {address:.500}: check the bucket and the name")
        return ListedFolder(f"s3://{bucket}/{key}", tuple(sorted(files.items(), key=lambda one: one[0].split("/"))))

    def _list(self, bucket: str, prefix: str) -> Iterator[tuple[str, Listed]]:
        """(key, file) of the objects whose keys begin with ``prefix``, in the order of keys."""
        with translate_s3_errors(self._client, f"s3://{bucket}", DataError, SourceAwayError):
            pages: Any = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            for page in pages:
                for one in page.get("Contents", ()):
                    yield one["Key"], Listed(f"s3://{bucket}/{one['Key']}", one["Size"], one["ETag"].strip('"'))


def _part(address: str) -> tuple[str, str]:
    """Bucket and key.

    Raises:
        DataError: no bucket.
    """
    bucket, _, key = address[len("s3://") :].partition("/")
    if not bucket or ":" in bucket:
        raise DataError("expected s3://bucket/name for data on S3, found no bucket: name one")
    return bucket, key
