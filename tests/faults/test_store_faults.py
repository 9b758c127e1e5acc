"""An object store that is overloaded, slow, cut off or at odds with the clock: what the S3 store makes of it.

The server is a real SeaweedFS; a proxy before it refuses, loses or spoils single requests.
"""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from ssl_backdoor.data.images import encode_png
from ssl_backdoor.errors import StoreError
from ssl_backdoor.seeds import stream
from ssl_backdoor.store import open_store, s3, s3_client
from ssl_backdoor.store.base import digest_file
from tests.support import store_commits
from tests.support.fault_proxy import Fault, fault_proxy
from tests.support.s3_artifacts import artifact_keys, commit, make_source

pytestmark = pytest.mark.services
KEY = store_commits.KEY
LARGE = 9 << 20  # two parts


@pytest.fixture
def direct(object_store, environment, prefix):
    """The store, reached without the proxy."""
    return open_store(f"s3://{object_store.bucket}/{prefix}")


@pytest.fixture
def proxy(object_store, direct, monkeypatch):
    with fault_proxy(object_store.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture
def store(proxy, direct):
    """The same store, reached through the proxy."""
    return open_store(direct.root)


@pytest.fixture
def impatient(proxy, direct, monkeypatch):
    """The store through the proxy, with few tries and short ones."""
    monkeypatch.setattr(s3, "_TRIES", 2)
    monkeypatch.setattr(s3_client, "TIMEOUT_S", 2.0)
    return open_store(direct.root)


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / "source", large_bytes=LARGE)


def assert_one_whole_artifact(server, prefix, store, source):
    """What is there is one manifest and the parts it names, bit for bit those of ``source``."""
    manifest = store.manifest(store.ref("ingest", KEY))
    assert sorted(artifact_keys(server, prefix)) == sorted(
        ["manifest.json", *(f"{manifest.parts}/{name}" for name in manifest.files)]
    )
    folder = store.fetch(store.ref("ingest", KEY))
    for name in ("large.bin", "samples.txt", "shards/empty.tar"):
        assert digest_file(folder / name) == manifest.files[name] == digest_file(source / name)


@pytest.mark.parametrize("way", ["refuse", "lose", "drop", "cut"])
def test_a_commit_comes_through_an_overloaded_server(store, source, proxy, object_store, prefix, way):
    """Each request of a commit once: refused with 503, done but told 503, done and never told, cut off half-way."""
    kinds = ("begin", "part", "complete", "put", "conditional")
    faults = proxy.add(*(Fault(kind, way, 1, "samples.txt" if kind == "put" else "") for kind in kinds))
    commit(store, source)
    assert [fault.met for fault in faults] == [1] * len(kinds)
    assert_one_whole_artifact(object_store, prefix, store, source)


@pytest.mark.parametrize("way", ["refuse", "drop", "cut", "shorten", "alter"])
def test_a_fetch_comes_through_and_is_never_wrong(store, direct, source, proxy, object_store, prefix, way):
    commit(direct, source)
    endings = ("manifest.json", "samples.txt", "large.bin")
    faults = proxy.add(*(Fault("get", way, 1, ending) for ending in endings))
    assert_one_whole_artifact(object_store, prefix, store, source)
    assert [fault.met for fault in faults] == [1] * len(endings)


def test_a_slow_server_is_waited_for_and_a_silent_one_asked_again(impatient, source, proxy, object_store, prefix):
    slow, silent = proxy.add(Fault("part", "pass", 1, before=lambda: time.sleep(0.3)), Fault("put", "stall", 1))
    commit(impatient, source)
    assert (slow.met, silent.met) == (1, 1)
    assert_one_whole_artifact(object_store, prefix, impatient, source)


@pytest.mark.parametrize(
    ("kind", "way", "sentence"),
    [
        ("part", "refuse", "answered SlowDown (503); try again"),
        ("conditional", "refuse", "answered SlowDown (503); try again"),
        ("get", "refuse", "answered SlowDown (503); try again"),
        ("put", "stall", "check AWS_ENDPOINT_URL and that the object store runs"),
    ],
)
def test_a_server_that_never_recovers_is_one_sentence_soon(
    impatient, direct, source, proxy, object_store, prefix, kind, way, sentence
):
    (fault,) = proxy.add(Fault(kind, way))
    with pytest.raises(StoreError) as caught:
        commit(impatient, source)
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert 2 <= fault.met <= 4  # a part that fails stops the other, which tries for itself
    assert direct.find("ingest", KEY) is None

    left = artifact_keys(object_store, prefix)
    assert (left == []) == (kind != "conditional")  # a manifest that may have arrived keeps its parts
    proxy.faults.clear()
    again = impatient.manifest(commit(impatient, source))
    assert not any(again.parts in key for key in left)
    folder = impatient.fetch(impatient.ref("ingest", KEY))
    assert digest_file(folder / "large.bin") == digest_file(source / "large.bin")


def test_a_truncated_answer_leaves_no_file(impatient, direct, source, proxy, tmp_path):
    commit(direct, source)
    proxy.add(Fault("get", "shorten", ending="large.bin"))
    ref = direct.ref("ingest", KEY)
    with pytest.raises(StoreError, match=r"expected sha256 .*large.bin, found .* cut short"):
        impatient.fetch(ref, ["large.bin"])
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    proxy.faults.clear()
    assert digest_file(impatient.fetch(ref) / "large.bin") == digest_file(source / "large.bin")


@pytest.mark.parametrize("way", ["refuse", "drop"])
def test_a_manifest_that_was_refused_meanwhile_is_anothers(store, direct, source, proxy, object_store, prefix, way):
    """Between the first try and its repetition another run commits: its artifact is adopted, the own parts go."""
    other = make_source(source.parent / "other", "other", LARGE)

    def commit_other():
        assert artifact_keys(object_store, prefix)  # this run's parts are there
        commit(direct, other)

    (fault,) = proxy.add(Fault("conditional", way, 1, before=commit_other))
    assert commit(store, source) == store.ref("ingest", KEY)
    assert fault.met == 1
    assert_one_whole_artifact(object_store, prefix, store, other)


def test_a_probe_whose_answer_is_lost_passes(store, proxy, object_store, prefix):
    (fault,) = proxy.add(Fault("conditional", "lose", 1))
    store.check()
    assert fault.met == 1
    assert object_store.keys(prefix) == []


def test_a_fetched_file_that_the_disk_spoils_is_fetched_again(direct, source):
    ref = commit(direct, source)
    folder = direct.fetch(ref)
    spoiled = bytearray((folder / "large.bin").read_bytes())
    spoiled[LARGE // 2] ^= 1
    (folder / "large.bin").write_bytes(spoiled)
    assert digest_file(direct.fetch(ref) / "large.bin") == digest_file(source / "large.bin")


@pytest.mark.parametrize("off_min", [-20, 20])
def test_a_clock_that_is_far_off_is_named(direct, source, object_store, environment, prefix, off_min):
    worker = store_commits.start(direct.root, source, "x", {**environment, "CLOCK_OFF_S": str(60 * off_min)})
    told, _ = worker.communicate(timeout=60)
    assert (worker.returncode, len(told.splitlines())) == (2, 1)
    assert told.startswith(f"expected the clock of this machine to be that of {direct.root} at")
    assert told.endswith("set the clock and run again\n")
    assert object_store.keys(prefix) == []


def test_of_two_clocks_ten_minutes_off_either_way_one_commit_wins(direct, object_store, environment, prefix, tmp_path):
    names = {"late": -600, "early": 600}
    workers = [
        store_commits.start(
            direct.root, make_source(tmp_path / name, name), name, {**environment, "CLOCK_OFF_S": str(off_s)}
        )
        for name, off_s in names.items()
    ]
    store_commits.wait_ready(*workers)
    first, second = store_commits.race(*workers)
    assert first == second
    kept = direct.manifest(direct.ref("ingest", KEY))
    assert (direct.fetch(direct.ref("ingest", KEY)) / "samples.txt").read_text() == kept.summary["by"] in names
    assert len(artifact_keys(object_store, prefix)) == 3


def make_pictures(folder: Path) -> Path:
    """Noise in two classes, 20 training and 5 test images each."""
    for split, count in (("train", 20), ("test", 5)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = stream(0, split, name, index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                (folder / split / name / f"{index}.png").write_bytes(encode_png(pixels))
    return folder


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_two_identical_ingests_at_once(kind, direct, environment, object_store, prefix, tmp_path):
    """Each ends well with the one artifact; nothing of the other stays, and no temporary folder."""
    pictures = make_pictures(tmp_path / "pictures")
    root = direct.root if kind == "s3" else (tmp_path / "store").as_uri()
    (tmp_path / "tmp").mkdir()
    workers = [
        store_commits.start(root, pictures, "digest", {**environment, "TMPDIR": str(tmp_path / "tmp")}, "ingest")
        for _ in range(2)
    ]
    store_commits.wait_ready(*workers)
    store = open_store(root)
    assert store.keys("ingest") == ()  # both have written everything, neither is to be found
    first, second = store_commits.race(*workers)
    assert first == second
    (key,) = store.keys("ingest")
    manifest = store.manifest(store.ref("ingest", key))
    assert (json.loads(first)["key"], manifest.summary["num_train"], manifest.summary["num_test"]) == (key, 40, 10)
    store.fetch(store.ref("ingest", key))
    names = ["manifest.json", *(f"{manifest.parts}/{name}".lstrip("/") for name in manifest.files)]
    if kind == "s3":
        found = [name.removeprefix(f"{prefix}/ingest/{key}/") for name in object_store.keys(prefix)]
    else:
        root = tmp_path / "store"
        found = [str(path.relative_to(root / "ingest" / key)) for path in root.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(names)
    assert list((tmp_path / "tmp").iterdir()) == []
