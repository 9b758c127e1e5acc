"""Servers and identities that lack something a store needs: each is told with its remedy, before a run."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import boto3
import pytest

from ssl_backdoor.errors import StoreAwayError, StoreError
from ssl_backdoor.store import ArtifactStore, open_store

Answer = tuple[int, str]
"""Status, and the code in the body; no body where that is empty."""
LACKS = {
    "whole": {},
    "checksums": {"checksum": (501, "NotImplemented")},
    "checksums, without a word": {"checksum": (501, "")},
    "checksums, told as a bad request": {"checksum": (400, "InvalidArgument")},
    "checksums, told as a bad signature": {"checksum": (403, "SignatureDoesNotMatch")},
    "conditions": {"condition": (501, "NotImplemented")},
    "conditions, without a word": {"condition": (501, "")},
    "conditions, ignored": {"condition": None},
    "right to write": {"PUT": (403, "AccessDenied")},
    "right to read": {"GET": (403, "AccessDenied")},
    "right to list": {"list": (403, "AccessDenied"), "missing": (403, "AccessDenied")},
    "right to learn what is missing": {"missing": (403, "AccessDenied")},
    "right to delete": {"DELETE": (403, "AccessDenied")},
    "words for what is missing": {"missing": (404, "")},
    "puts": {"PUT": (405, "")},
    "everything for now": {"PUT": (503, "SlowDown")},
}
TOLD = {
    "whole": None,
    "words for what is missing": None,
    "checksums": "AWS_REQUEST_CHECKSUM_CALCULATION=when_required",
    "checksums, without a word": "AWS_REQUEST_CHECKSUM_CALCULATION=when_required",
    "checksums, told as a bad request": "AWS_REQUEST_CHECKSUM_CALCULATION=when_required",
    "checksums, told as a bad signature": "AWS_REQUEST_CHECKSUM_CALCULATION=when_required",
    "conditions": "no conditional writes (If-None-Match",
    "conditions, without a word": "no conditional writes (If-None-Match",
    "conditions, ignored": "to honour If-None-Match",
    "right to write": "right to s3:PutObject",
    "right to read": "right to s3:GetObject",
    "right to list": "right to s3:ListBucket",
    "right to learn what is missing": "without it a missing object is refused too",
    "right to delete": "right to s3:DeleteObject",
    "puts": "as no object store does; check AWS_ENDPOINT_URL",
    "everything for now": "answered SlowDown (503); try again",
}


class _Bucket(BaseHTTPRequestHandler):
    """As much of S3 as ``check`` asks for, but for what ``lacks`` says."""

    protocol_version = "HTTP/1.1"  # answers "Expect: 100-continue", for which a client waits a second
    lacks: ClassVar[dict[str, Answer | None]] = {}
    objects: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        has_checksum = any(name.lower().startswith("x-amz-checksum") for name in self.headers)
        has_condition = self.headers["If-None-Match"] is not None
        for asked, name in ((True, "PUT"), (has_checksum, "checksum"), (has_condition, "condition")):
            if asked and (answer := self.lacks.get(name)) is not None:
                return self.reply(*answer)
        if has_condition and "condition" not in self.lacks and self.path in self.objects:
            return self.reply(412, "PreconditionFailed")
        self.objects[self.path] = body
        return self.reply(200)

    def do_GET(self) -> None:
        if "list-type" in self.path:
            answer = self.lacks.get("list")
            return self.reply(*answer) if answer else self.reply(200, body=b"<ListBucketResult></ListBucketResult>")
        if answer := self.lacks.get("GET"):
            return self.reply(*answer)
        if (found := self.objects.get(self.path.partition("?")[0])) is None:
            return self.reply(*(self.lacks.get("missing") or (404, "NoSuchKey")))
        return self.reply(200, body=found)

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self.reply(*(self.lacks.get("DELETE") or (204, "")))

    def reply(self, status: int, code: str = "", body: bytes = b"") -> None:
        body = f"<Error><Code>{code}</Code></Error>".encode() if code else body
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Bucket) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def session() -> boto3.session.Session:
    """One for all: each reads the description of S3 anew, which takes longer than the test."""
    return boto3.session.Session("key", "secret", region_name="us-east-1")


@pytest.fixture
def bucket(place, session, monkeypatch, tmp_path) -> type[_Bucket]:
    """A bucket of a server on loopback, for a shell behind a proxy that nobody runs."""
    monkeypatch.setattr(boto3.session, "Session", lambda **_: session)
    settings = {"AWS_ENDPOINT_URL": place, "SSL_BACKDOOR_CACHE": str(tmp_path), "http_proxy": "http://127.0.0.1:9"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_Bucket, "lacks", {})
    monkeypatch.setattr(_Bucket, "objects", {})
    return _Bucket


@pytest.fixture
def store(bucket) -> ArtifactStore:
    return open_store("s3://bucket/lab")


@pytest.mark.parametrize("case", LACKS)
def test_check_tells_what_is_lacking(case, bucket, store):
    bucket.lacks = LACKS[case]
    if (words := TOLD[case]) is None:
        store.check()
    else:
        with pytest.raises(StoreError, match=re.escape(words)) as caught:
            store.check()
        assert isinstance(caught.value, StoreAwayError) == (case == "everything for now")
    if "DELETE" not in bucket.lacks:
        assert bucket.objects == {}


def test_the_remedy_for_checksums_works(bucket, store, monkeypatch):
    bucket.lacks = LACKS["checksums"]
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    open_store("s3://bucket/lab").check()


def test_a_missing_artifact_is_missing_whatever_is_said_of_it(bucket, store):
    bucket.lacks = LACKS["words for what is missing"]
    assert store.find("train", "a" * 64) is None


def test_a_manifest_that_is_too_large_is_not_read(bucket, store, monkeypatch):
    monkeypatch.setattr("ssl_backdoor.store.base._MAX_MANIFEST_BYTES", 8)
    bucket.objects[f"/bucket/lab/train/{'a' * 64}/manifest.json"] = bytes(9)
    with pytest.raises(StoreError, match=f"at most 8 bytes of s3://bucket/lab/train/{'a' * 64}, found 9"):
        store.manifest(store.ref("train", "a" * 64))
