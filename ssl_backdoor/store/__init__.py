"""The artifact store: find, commit and fetch finished stages, on a file system or an S3-compatible object store."""

import re

from ssl_backdoor.errors import SpecError
from ssl_backdoor.store.base import ArtifactRef, ArtifactStore, FileEntry, Manifest, Range
from ssl_backdoor.store.local import LocalStore, folder_of

__all__ = ["ArtifactRef", "ArtifactStore", "FileEntry", "LocalStore", "Manifest", "Range", "open_store"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_store(uri: str) -> ArtifactStore:
    """The store at ``uri``: a plain path, ``file:///absolute/path`` or ``s3://bucket/prefix``.

    A local folder is created. For S3 the endpoint, region and credentials come from the standard AWS chain
    (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, profiles ...); nothing is contacted before the first call.

    Raises:
        SpecError: the URI has another scheme, no bucket, or credentials in it.
        StoreError: the local folder cannot be made, or the AWS settings cannot be used.
    """
    scheme = _SCHEME.match(uri)
    match scheme.group(1).lower() if scheme else "file":
        case "file":
            return LocalStore(folder_of(uri))
        case "s3":
            from ssl_backdoor.store.s3 import S3Store  # boto3 takes a third of a second to import

            return S3Store(uri)
        case other:
            raise SpecError(f"expected a path, file:// or s3:// for the store, found {other}://; choose one of those")
