"""The artifact store: find, commit and fetch finished stages, on a file system or an S3-compatible object store."""

import re

from ssl_backdoor.errors import SpecError, needs_extra
from ssl_backdoor.store.base import ArtifactRef, ArtifactStore, FileEntry, Manifest, Range
from ssl_backdoor.store.local import LocalStore, folder_of

__all__ = ["ArtifactRef", "ArtifactStore", "FileEntry", "LocalStore", "Manifest", "Range", "is_folder", "open_store"]

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):/")
_MEANS_S3 = re.compile(r"\s*(?:s3[an]?|minio|arn)(?::|//)|.*\bamazonaws\.com\b", re.IGNORECASE)
"""Spellings of a bucket in other tools."""


def is_folder(uri: str) -> bool:
    """Whether ``uri`` names a folder of this machine: a plain path or ``file://``.

    Raises:
        SpecError: it has another scheme, or means a bucket and does not say so as ``s3://bucket/prefix``.
    """
    if uri.lower().startswith(("file://", "s3://")):
        return uri.lower().startswith("file://")
    if _MEANS_S3.match(uri):
        raise SpecError(
            "expected s3://bucket/prefix for a store on S3, found another spelling; write it so, and set the server's "
            "address in AWS_ENDPOINT_URL"
        )
    if scheme := _SCHEME.match(uri):
        raise SpecError(f"expected a path, file:// or s3:// for the store, found {scheme[1]}:; choose one of those")
    return True


def open_store(uri: str) -> ArtifactStore:
    """The store at ``uri``: a plain path, ``file:///absolute/path`` or ``s3://bucket/prefix``.

    A local folder is created. For S3 the endpoint, region and credentials come from the standard AWS chain
    (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, profiles ...); nothing is contacted before the first call.

    Raises:
        SpecError: the URI has another scheme, no bucket, or credentials in it.
        StoreError: the local folder cannot be made, or the AWS settings cannot be used.
    """
    if is_folder(uri):
        return LocalStore(folder_of(uri))
    with needs_extra("s3", "a store on S3"):
        from ssl_backdoor.store.s3 import S3Store  # boto3 takes a third of a second to import

    return S3Store(uri)
