"""The S3 store against a real SeaweedFS: races, kill -9, wrong credentials, a server that goes away."""

import os
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ssl_backdoor.errors import StoreError
from ssl_backdoor.store import Manifest, Range, open_store, s3
from ssl_backdoor.store.base import digest_file
from tests.support import store_commits
from tests.support.s3_artifacts import artifact_keys, commit, make_source
from tests.support.seaweedfs import free_ports, object_store_server

pytestmark = pytest.mark.services
KEY = store_commits.KEY
WAIT_S = 30


@pytest.fixture
def store(object_store, environment, prefix):
    return open_store(f"s3://{object_store.bucket}/{prefix}/")


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / "source")


def test_what_is_committed_is_found_and_fetched_from_the_cache(store, source, object_store, prefix, tmp_path):
    (source / "large.bin").write_bytes(np.random.default_rng(0).bytes(12 << 20))  # two parts
    assert store.root == f"s3://{object_store.bucket}/{prefix}"
    store.check()
    assert object_store.keys(prefix) == []
    assert store.find("ingest", KEY) is None
    with pytest.raises(StoreError, match="found no manifest"):
        store.manifest(store.ref("ingest", KEY))

    ref = commit(store, source)
    assert store.find("ingest", KEY) == ref == commit(store, source)
    manifest = store.manifest(ref)
    assert (manifest.summary, manifest.files["large.bin"].bytes) == ({"n": 1}, 12 << 20)
    names = ["large.bin", "samples.txt", "shards/empty.tar"]
    expected = sorted(["manifest.json", *(f"{manifest.parts}/{name}" for name in names)])
    assert sorted(artifact_keys(object_store, prefix)) == expected

    folder = store.fetch(ref, ["samples.txt"])
    assert (folder / "samples.txt").read_text() == "hello"
    assert [path.name for path in folder.iterdir()] == ["samples.txt"]
    object_store.client().delete_object(
        Bucket=object_store.bucket, Key=f"{prefix}/ingest/{KEY}/{manifest.parts}/samples.txt"
    )
    assert store.fetch(ref) == folder  # what is there already is not asked for again
    assert digest_file(folder / "large.bin") == manifest.files["large.bin"] == digest_file(source / "large.bin")
    assert (folder / "shards" / "empty.tar").read_bytes() == b""
    os.truncate(folder / "samples.txt", 2)
    with pytest.raises(StoreError, match="found it gone"):
        store.fetch(ref, ["samples.txt"])
    with pytest.raises(StoreError, match=r"expected model\.bin"):
        store.fetch(ref, ["model.bin"])


def test_parts_of_objects_are_read_in_order_and_nothing_is_kept(store, source, tmp_path, monkeypatch):
    data = np.random.default_rng(0).bytes(1 << 20)
    (source / "large.bin").write_bytes(data)
    ref = commit(store, source)
    monkeypatch.setenv("SSL_BACKDOOR_CACHE", str(tmp_path / "fresh"))
    wanted = [Range("large.bin", 7919 * index, 1000 + index) for index in range(100)]
    found = list(store.read(ref, [*wanted, Range("large.bin", (1 << 20) - 2, 9), Range("gone.tar", 0, 4)]))
    assert found == [*(data[each.offset :][: each.size] for each in wanted), data[-2:], b""]
    assert not (tmp_path / "fresh").exists()


def test_two_processes_race_and_one_wins(store, object_store, environment, prefix, tmp_path):
    folders = [make_source(tmp_path / name, name) for name in ("one", "two")]
    workers = [store_commits.start(store.root, folder, folder.name, environment) for folder in folders]
    store_commits.wait_ready(*workers)
    assert len(artifact_keys(object_store, prefix)) == 4  # both have uploaded, neither is to be found
    assert store.find("ingest", KEY) is None
    answers = [Manifest.model_validate_json(answer) for answer in store_commits.race(*workers)]
    kept = store.manifest(store.ref("ingest", KEY))
    assert answers == [kept, kept]
    expected = sorted(["manifest.json", f"{kept.parts}/samples.txt", f"{kept.parts}/shards/empty.tar"])
    assert sorted(artifact_keys(object_store, prefix)) == expected
    assert (store.fetch(store.ref("ingest", KEY)) / "samples.txt").read_text() == kept.summary["by"]


def test_kill_9_between_parts_and_manifest(store, source, object_store, environment, prefix):
    store_commits.kill(store_commits.start(store.root, source, "crashed", environment))
    leftover = artifact_keys(object_store, prefix)
    assert len(leftover) == 2
    assert store.find("ingest", KEY) is None
    ref = commit(store, source)
    manifest = store.manifest(ref)
    assert manifest.summary == {"n": 1}
    assert not any(key.startswith(manifest.parts) for key in leftover)
    assert (store.fetch(ref) / "samples.txt").read_text() == "hello"


def test_a_put_whose_answer_is_lost_keeps_its_parts(store, source, monkeypatch):
    """The retry of a manifest that did arrive finds the place taken: by this very attempt."""
    put = store._client.put_object

    def answer_lost(**request):
        if "IfNoneMatch" in request:
            put(**request)
        return put(**request)

    monkeypatch.setattr(store._client, "put_object", answer_lost)
    ref = commit(store, source)
    assert (store.fetch(ref) / "samples.txt").read_text() == "hello"


def test_a_failed_upload_leaves_no_objects(store, source, object_store, prefix, monkeypatch):
    upload = store._client.upload_file

    def interrupted(file, *arguments, **options):
        upload(file, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(store._client, "upload_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        commit(store, source)
    assert artifact_keys(object_store, prefix) == []


def refusals(store, source, tmp_path):
    """What each operation says when the store refuses it; full tracebacks, to look for secrets."""
    state = tmp_path / "state"
    state.write_text("state")
    actions = (
        store.check,
        lambda: store.find("ingest", KEY),
        lambda: commit(store, source),
        lambda: store.save_checkpoint("train", KEY, 1, state),
        lambda: store.load_checkpoint("train", KEY),
    )
    for action in actions:
        with pytest.raises(StoreError) as caught:
            action()
        yield str(caught.value), "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("variable", "code"), [("SECRET_ACCESS_KEY", "SignatureDoesNotMatch"), ("ACCESS_KEY_ID", "Key")]
)
def test_wrong_credentials(object_store, environment, source, tmp_path, monkeypatch, variable, code):
    monkeypatch.setenv(f"AWS_{variable}", "hunter2-wrong")
    store = open_store(f"s3://{object_store.bucket}/wrong")
    for sentence, everything in refusals(store, source, tmp_path):
        assert f"s3://{object_store.bucket}/wrong at {object_store.endpoint} refuses these credentials" in sentence
        assert code in sentence
        assert "hunter2" not in everything
        assert object_store.secret_key not in everything
    assert object_store.keys("wrong") == []


def test_no_credentials(object_store, environment, source, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for sentence, _ in refusals(open_store(f"s3://{object_store.bucket}/x"), source, tmp_path):
        assert sentence.startswith(f"no credentials for s3://{object_store.bucket}/x")
        assert "set AWS_ACCESS_KEY_ID" in sentence


def test_a_missing_bucket(object_store, environment, source, tmp_path):
    for sentence, _ in refusals(open_store("s3://no-such-bucket/x"), source, tmp_path):
        assert sentence.startswith(
            f"expected the bucket of s3://no-such-bucket/x at {object_store.endpoint}, found none"
        )


def test_an_unreachable_endpoint(environment, source, tmp_path, monkeypatch):
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://someone:hunter2@127.0.0.1:{port}")
    monkeypatch.setattr(s3, "_TRIES", 1)
    for sentence, _ in refusals(open_store("s3://artifacts"), source, tmp_path):
        assert sentence.startswith(f"cannot reach s3://artifacts at http://127.0.0.1:{port}; check AWS_ENDPOINT_URL")
        assert "hunter2" not in sentence


@pytest.mark.parametrize(("name", "value"), [("AWS_PROFILE", "nobody"), ("AWS_ENDPOINT_URL", "not an address")])
def test_settings_that_cannot_be_used(environment, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=f"cannot set up S3 access.*{name}"):
        open_store("s3://artifacts")


def test_an_altered_object_is_found_on_fetch(store, source, object_store, prefix, tmp_path):
    ref = commit(store, source)
    key = f"{prefix}/ingest/{KEY}/{store.manifest(ref).parts}/samples.txt"
    object_store.client().put_object(Bucket=object_store.bucket, Key=key, Body=b"hullo")
    with pytest.raises(StoreError, match=f"expected sha256 2cf24dba.* of s3://{object_store.bucket}/{key}, found "):
        store.fetch(ref)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_truncated_manifest_is_an_error(store, source, object_store, prefix):
    ref = commit(store, source)
    key = f"{prefix}/ingest/{KEY}/manifest.json"
    object_store.client().put_object(Bucket=object_store.bucket, Key=key, Body=b'{"stage": "ing')
    with pytest.raises(StoreError, match="found 14 bytes that are not one"):
        store.fetch(ref)


def test_a_cache_that_cannot_be_written(store, source, tmp_path, monkeypatch):
    ref = commit(store, source)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SSL_BACKDOOR_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match=r"cannot use the cache folder .*a file stands where"):
        store.fetch(ref)


def test_an_object_store_without_conditional_writes_is_refused(store, monkeypatch, object_store, prefix):
    def forgetful(tries: int, **more):
        client = made(tries, **more)
        if "proxies" in more:  # asked for by the real one itself
            return client
        put = client.put_object
        client.put_object = lambda IfNoneMatch, **request: put(**request)
        return client

    made = s3._client
    monkeypatch.setattr(s3, "_client", forgetful)
    with pytest.raises(StoreError, match="honour If-None-Match"):
        store.check()
    assert object_store.keys(prefix) == []


def test_checkpoints_keep_the_two_newest_and_skip_a_truncated_one(store, object_store, prefix, tmp_path):
    state, folder = tmp_path / "state", f"{prefix}/.checkpoints/train/{KEY}/"
    assert store.load_checkpoint("train", KEY) is None
    for step in (50, 100, 150):
        state.write_text(f"state {step}")
        store.save_checkpoint("train", KEY, step, state)
    older, newest = sorted(object_store.keys(folder))
    assert [key.removeprefix(folder)[:11] for key in (older, newest)] == ["step-000100", "step-000150"]
    step, file = store.load_checkpoint("train", KEY)
    assert (step, file.read_text()) == (150, "state 150")

    object_store.client().put_object(Bucket=object_store.bucket, Key=newest, Body=b"stat")
    step, file = store.load_checkpoint("train", KEY)
    assert (step, file.read_text()) == (100, "state 100")

    store.drop_checkpoints("train", KEY)
    store.drop_checkpoints("train", KEY)
    assert store.load_checkpoint("train", KEY) is None
    assert object_store.keys(prefix) == []
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


class Outage:
    """Kills ``server`` when the first part of a multipart upload is done; ``noticed`` when a request then fails."""

    def __init__(self, server, store):
        self.server, self.lock = server, threading.Lock()
        self.down, self.noticed = threading.Event(), threading.Event()
        events = store._client.meta.events
        events.register("after-call.s3.UploadPart", self._after_part)
        events.register("needs-retry.s3", self._maybe_retried)

    def _after_part(self, **_):
        with self.lock:
            if not self.down.is_set():
                self.server.kill()
                self.down.set()

    def _maybe_retried(self, caught_exception=None, **_):
        if self.down.is_set() and caught_exception is not None:
            self.noticed.set()


@pytest.fixture
def own_server(environment, monkeypatch):
    """A server that the test may kill."""
    with object_store_server() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server


def test_the_server_restarts_in_the_middle_of_an_upload(own_server, tmp_path):
    source = make_source(tmp_path / "source", large_bytes=32 << 20)
    store = open_store(f"s3://{own_server.bucket}/outage")
    outage = Outage(own_server, store)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(commit, store, source)
        assert outage.noticed.wait(WAIT_S), "no request met the outage"
        own_server.start()
        error = running.exception(timeout=WAIT_S)
    assert error is None or isinstance(error, StoreError), error
    if error is not None:
        assert store.find("ingest", KEY) is None
    ref = commit(store, source)
    assert digest_file(store.fetch(ref) / "large.bin") == digest_file(source / "large.bin")
    assert error is None, f"the retries should have bridged the outage: {error}"


def test_the_server_stays_away_in_the_middle_of_an_upload(own_server, tmp_path, monkeypatch):
    source = make_source(tmp_path / "source", large_bytes=32 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(s3, "_TRIES", 2)
        store = open_store(f"s3://{own_server.bucket}/outage")
    outage = Outage(own_server, store)
    with pytest.raises(StoreError, match="cannot reach s3://artifacts/outage at http://") as caught:
        commit(store, source)
    assert outage.down.is_set()
    assert len(str(caught.value).splitlines()) == 1
    own_server.start()
    assert store.find("ingest", KEY) is None
    assert store.keys("ingest") == ()
    manifest = store.manifest(commit(store, source))
    elsewhere = open_store(str(tmp_path / "elsewhere"))
    assert manifest.digest == elsewhere.manifest(commit(elsewhere, source)).digest
    left_over(own_server, "outage", manifest)
    assert left_over(own_server, "outage", manifest) == []
    assert digest_file(store.fetch(store.ref("ingest", KEY)) / "large.bin") == digest_file(source / "large.bin")


def left_over(server, prefix, manifest):
    """Take away what the manifest does not reach: objects of other attempts, uploads without an end; their names."""
    client, place = server.client(), {"Bucket": server.bucket}
    reached = {"manifest.json", *(f"{manifest.parts}/{name}" for name in manifest.files)}
    objects = [f"{prefix}/ingest/{KEY}/{name}" for name in set(artifact_keys(server, prefix)) - reached]
    for key in objects:
        client.delete_object(Key=key, **place)
    uploads = client.list_multipart_uploads(Prefix=prefix, **place).get("Uploads", [])
    for upload in uploads:
        assert not upload["Key"].startswith(f"{prefix}/ingest/{KEY}/{manifest.parts}")
        client.abort_multipart_upload(Key=upload["Key"], UploadId=upload["UploadId"], **place)
    return objects + [upload["Key"] for upload in uploads]
