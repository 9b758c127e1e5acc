"""Data at addresses: which are taken, how https is read and what of it is refused, what the cache of blocks keeps."""

import os
import re
from pathlib import Path

import pytest
from picture_files import cats_and_dogs, facts, files_spec, picture, read_source, write_tar, write_zip

from ssl_backdoor.data import block_cache, remote, remote_https
from ssl_backdoor.data.remote_s3 import S3Transport
from ssl_backdoor.data.sources import locate, open_source, source_digest
from ssl_backdoor.data.transport import Answer, Listed, ListedFolder
from ssl_backdoor.errors import DataError, SourceAwayError, SpecError
from tests.support.https_server import WebServer, https_server


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with https_server(tmp_path_factory.mktemp("https")) as web:
        yield web


@pytest.fixture
def web(running: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(running.certificate))
    monkeypatch.setenv("SSL_BACKDOOR_DATA_HOSTS", "127.0.0.1")
    monkeypatch.setenv("SSL_BACKDOOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(remote_https, "_MAX_PAUSE_S", 0.01)
    monkeypatch.setattr(remote_https, "TRIES", 3)
    running.files.clear()
    running.seen.clear()
    running.tag, running.answers = '"first"', lambda *_: None
    yield running
    forget()


def forget() -> None:
    """Close all connections; the next ones are made anew."""
    for one in remote._transports.values():
        one._client.close()
    remote._transports.clear()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("http://host/x.tar", "found http://, which anybody on the way can change"),
        ("ftp://host/x.tar", r"expected a path, file://, s3:// or https:// for data, found ftp://"),
        ("https://me:secret@host/x.tar", "without credentials"),
        ("s3://key:secret@bucket/x.tar", "without credentials"),
        ("https://host/x.tar?X-Amz-Signature=secret", "without credentials and without"),
        ("https://host/x.tar#secret", "without credentials and without"),
        ("file://host/x.tar", "write three slashes"),
        ("file:///no/such/place", "there is nothing at /no/such/place"),
        ("s3:///x.tar", "found no bucket"),
        ("{https://host,s3://bucket}/x.tar", "several kinds of places"),
        ("https://host/folder/", "which https cannot list"),
        ("https://host:port/x.tar", "expected https://host/name"),
    ],
)
def test_addresses_that_are_no_data(data: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        locate(data)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("block", [700, 2**22])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_on_https_is_read_as_one_on_a_disk(
    web: WebServer, tmp_path: Path, kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", block)
    path = tmp_path / f"set.{kind}"
    write_zip(path, cats_and_dogs()) if kind == "zip" else write_tar(
        path, cats_and_dogs(), "w:gz" if kind == "tar.gz" else "w"
    )
    web.files[f"/data/set.{kind}"] = path.read_bytes()
    there = read_source(f"{web.address}/data/set.{kind}")
    assert [item[:7] for item in there] == [item[:7] for item in read_source(path)]
    asked = [headers["range"] for _, headers in web.seen]
    assert len(set(asked[1:])) == len(asked[1:])  # a block is read once, however often the source is


def test_shards_on_https_by_a_pattern_and_their_identity(web: WebServer, tmp_path: Path) -> None:
    for number in range(3):
        files = {f"{number}{name}": b"a cat" if name == ".txt" else b"\x89PNG" for name in (".png", ".txt")}
        web.files[f"/{number:02d}.tar"] = write_tar(tmp_path / f"{number:02d}.tar", files).read_bytes()
    data = f"{web.address}/{{00..02}}.tar"
    assert facts(read_source(data)) == facts(read_source(tmp_path / "{00..02}.tar"))
    first = source_digest(files_spec(), data)
    assert source_digest(files_spec(), data) == first
    web.tag = '"second"'
    assert source_digest(files_spec(), data) != first
    with pytest.raises(DataError, match=r"there is nothing at .*/03\.tar"):
        locate(f"{web.address}/{{02..03}}.tar")


def test_a_file_that_changes_while_it_is_read(web: WebServer, tmp_path: Path) -> None:
    web.files["/x.tar"] = write_tar(tmp_path / "x.tar", cats_and_dogs()).read_bytes()
    source = open_source(files_spec("webdataset"), f"{web.address}/x.tar")
    list(source.listing())
    web.tag = '"second"'
    for kept in (tmp_path / "cache").rglob("[0-9]"):
        kept.unlink()
    with pytest.raises(DataError, match=r"x\.tar changed while it was used"):
        list(source.listing())


def redirect(to: str, status: int = 302):
    return lambda path, _: (status, {"Location": to}, b"") if path == "/x.tar" else None


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (lambda *_: (403, {}, b""), "refuses it (403)"),
        (lambda *_: (200, {}, b"all of it"), "does not know ranges"),
        (lambda *_: (206, {"Content-Range": "bytes 5-5/9", "ETag": '"a"'}, b"a"), "does not know ranges"),
        (lambda *_: (206, {"Content-Range": "bytes 0-0/9"}, b"a"), "neither ETag nor Last-Modified"),
        (lambda *_: (206, {"Content-Range": "bytes 0-0/9", "ETag": '"a"'}, b"abc"), "sends more than was asked for"),
        (lambda *_: (416, {"Content-Range": "bytes */0"}, b""), "is empty"),
        (redirect("/x.tar"), "more than 5 redirects"),
        (redirect("http://127.0.0.1/y.tar"), "another scheme than https"),
        (redirect("file:///etc/passwd"), "another scheme than https"),
        (redirect("https://169.254.169.254/latest"), "'169.254.169.254', which SSL_BACKDOOR_DATA_HOSTS does not name"),
    ],
)
def test_answers_of_https_that_are_refused(web: WebServer, answers, message: str) -> None:
    web.answers = answers
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        locate(f"{web.address}/x.tar")
    assert not isinstance(caught.value, SourceAwayError)


def test_a_redirect_is_followed_and_its_signature_kept_nowhere(web: WebServer, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    web.files["/y.tar?signature=hidden"] = write_tar(tmp_path / "x.tar", cats_and_dogs()).read_bytes()
    web.answers = redirect("/y.tar?signature=hidden")
    assert len(read_source(f"{web.address}/x.tar")) == 12
    (path,) = locate(f"{web.address}/x.tar")
    assert "hidden" not in f"{path!r} {caplog.text}"


def test_a_server_that_is_busy_is_asked_again(web: WebServer, tmp_path: Path) -> None:
    web.files["/x.tar"] = write_tar(tmp_path / "x.tar", cats_and_dogs()).read_bytes()
    busy = iter((503, 429))
    web.answers = lambda *_: (status, {}, b"") if (status := next(busy, 0)) else None
    assert len(read_source(f"{web.address}/x.tar")) == 12
    web.answers = lambda *_: (206, {"Content-Range": "bytes 0-0/9", "ETag": '"a"'}, b"")  # it breaks off
    with pytest.raises(SourceAwayError, match="its answer broke off"):
        locate(f"{web.address}/x.tar")
    assert len(web.seen) >= 5


def test_nobody_listens_and_a_certificate_that_nobody_vouches_for(web: WebServer, monkeypatch) -> None:
    with pytest.raises(SourceAwayError, match=r"cannot read https://127\.0\.0\.1:9/x\.tar \(ConnectError\)"):
        locate("https://127.0.0.1:9/x.tar")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(SourceAwayError, match="ConnectError"):
        locate(f"{web.address}/x.tar")
    assert web.seen == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.1.2.3", "169.254.169.254", "[::1]"])
def test_hosts_that_are_not_public_are_asked_only_where_they_are_named(web: WebServer, monkeypatch, host: str) -> None:
    monkeypatch.delenv("SSL_BACKDOOR_DATA_HOSTS")
    port = web.address.rpartition(":")[2]
    with pytest.raises(DataError, match="which is no public address: name its host in SSL_BACKDOOR_DATA_HOSTS"):
        locate(f"https://{host}:{port}/x.tar")
    assert web.seen == []


def test_a_password_goes_to_its_host_alone(web: WebServer, tmp_path: Path) -> None:
    web.files["/x.tar"] = write_tar(tmp_path / "x.tar", cats_and_dogs()).read_bytes()
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hidden\n")
    (tmp_path / "netrc").chmod(0o600)
    forget()
    read_source(f"{web.address}/x.tar")
    assert all(headers["authorization"].startswith("Basic ") for _, headers in web.seen)
    (tmp_path / "netrc").write_text("not a list of machines\n")
    forget()
    with pytest.raises(DataError, match=r"cannot read passwords from .*netrc"):
        locate(f"{web.address}/x.tar")


@pytest.mark.parametrize("name", ["../../etc/x.png", "a//b.png", "a/./b.png", "a\\b.png"])
def test_a_listing_never_leads_out_of_its_folder(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    listed = [(f"pets/{one}", Listed(f"s3://bucket/pets/{one}", 1, "tag")) for one in ("a.png", name)]
    monkeypatch.setattr(S3Transport, "_list", lambda _, bucket, prefix: iter(listed))
    with pytest.raises(DataError, match="which no folder can hold: rename or remove it"):
        locate("s3://bucket/pets")
    forget()


class Objects:
    """A transport that holds ``files``."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []

    def find(self, addresses: list[str]) -> list[Listed | ListedFolder]:
        named = tuple((name, Listed(f"s3://b/{name}", len(data), "tag")) for name, data in self.files.items())
        return [ListedFolder("s3://b/", named)]

    def read(self, address: str, offset: int, size: int) -> Answer:
        data = self.files[address.removeprefix("s3://b/")]
        self.asked.append(address)
        return Answer(data[offset : offset + size], len(data), "tag")


def test_objects_are_read_in_order_and_heads_where_a_name_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_BACKDOOR_SOURCE_CACHE_GB", "0")
    pictures = {f"{('cat', 'dog')[number // 20]}/{number:03d}.png": picture(number) for number in range(40)}
    objects = Objects({"LICENSE": b"text", "cat/000": picture(99)} | pictures | {"cat/empty": b"", "notes.csv": b"x"})
    monkeypatch.setattr(remote, "transport_of", lambda _: objects)
    items = read_source("s3://b")
    assert [item.name for item in items] == ["cat/000", *pictures]
    assert [item.image for item in items] == [picture(99), *pictures.values()]
    (folder,) = locate("s3://b")
    objects.asked.clear()
    few = list(pictures)[::3]
    found = {member.name: member.data for member in folder.members(lambda name: name in few) if member.data is not None}
    assert found == {name: pictures[name] for name in few}
    assert len(objects.asked) == len(few)  # nothing is read ahead where not all are wanted


# ------------------------------------------------------------------------------------------------ cache


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_BACKDOOR_CACHE", str(tmp_path))
    monkeypatch.setenv("SSL_BACKDOOR_SOURCE_CACHE_GB", str(10_000 / 2**30))
    return tmp_path / "sources"


def test_the_cache_keeps_what_was_used_last_within_its_bound(kept: Path) -> None:
    for index in range(30):
        block_cache.put("file", index, bytes([index]) * 1000)
        if block_cache.get("file", 0) is not None:  # used again and again
            for path in kept.rglob("0"):
                os.utime(path, (2**31, 2**31))
        assert sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) <= 11_100
    assert block_cache.get("file", 0) == bytes([0]) * 1000
    assert block_cache.get("file", 29) == bytes([29]) * 1000
    assert block_cache.get("file", 5) is None


def test_a_damaged_block_and_a_cache_that_cannot_be_written_are_no_trouble(kept: Path, monkeypatch) -> None:
    block_cache.put("file", 0, b"whole")
    (path,) = (path for path in kept.rglob("0") if path.is_file())
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    assert block_cache.get("file", 0) is None
    monkeypatch.setenv("SSL_BACKDOOR_CACHE", "/dev/null")
    block_cache.put("file", 0, b"whole")
    assert block_cache.get("file", 0) is None
    monkeypatch.setenv("SSL_BACKDOOR_SOURCE_CACHE_GB", "much")
    with pytest.raises(SpecError, match="expected a number of gigabytes"):
        block_cache.max_bytes()


def test_no_cache_at_all(kept: Path, monkeypatch) -> None:
    monkeypatch.setenv("SSL_BACKDOOR_SOURCE_CACHE_GB", "0")
    block_cache.put("file", 0, b"x")
    assert block_cache.get("file", 0) is None
    assert not kept.exists()
