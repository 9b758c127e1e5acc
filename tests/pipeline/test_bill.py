"""Requests that were counted beforehand against those that a real S3 server was asked."""

from collections import Counter

import pytest

from flows.bill import Bill
from flows.census import Census, stated
from flows.plan import plan
from ssl_backdoor.data.ingest import source_digest
from ssl_backdoor.data.preview import preview
from ssl_backdoor.specs import Resources, Stage
from ssl_backdoor.stages import run_stage
from ssl_backdoor.store import open_store, s3
from ssl_backdoor.store.s3_requests import CHECK, LOAD_CHECKPOINT, PART_BYTES, Requests, checkpoints, commit, fetch
from tests.support.command_server import TINY_SETTINGS

pytestmark = pytest.mark.services
KINDS = {"PutObject": "writes", "ListObjectsV2": "writes", "CreateMultipartUpload": "writes", "UploadPart": "writes"}
KINDS |= {"CompleteMultipartUpload": "writes", "GetObject": "reads", "HeadObject": "reads", "DeleteObject": "deletes"}
STAGE: Stage = "ingest"


@pytest.fixture
def asked(object_store, environment, request, monkeypatch):
    """A store on the server, and a function that tells what it was asked since it was last called."""
    heard, client_of = Counter(), s3._client

    def listening(tries):
        client = client_of(tries)
        client.meta.events.register(
            "before-send.s3", lambda event_name, **_: heard.update([KINDS[event_name.rpartition(".")[2]]])
        )
        return client

    def since() -> Requests:
        found = Requests(**heard)
        heard.clear()
        return found

    monkeypatch.setattr(s3, "_client", listening)
    return open_store(f"s3://{object_store.bucket}/tests/{request.node.name}"), since


def test_each_operation_of_the_store(asked, tmp_path):
    store, since = asked
    sizes = {"small": 100, "just": PART_BYTES - 1, "two": PART_BYTES, "three": 2 * PART_BYTES + 1}
    (tmp_path / "files").mkdir()
    for name, size in sizes.items():
        (tmp_path / "files" / name).write_bytes(bytes(size))
    about = {"spec": {}, "inputs": {}, "summary": {}, "seconds": 0.0}
    ref = store.commit(STAGE, "a" * 64, tmp_path / "files", **about)
    assert since() == commit(sizes.values())
    store.fetch(ref, ["small", "three"])
    assert since() == fetch([sizes["small"], sizes["three"]])
    store.fetch(ref)
    assert since() == fetch([sizes["just"], sizes["two"]])
    store.fetch(ref)
    assert since() == fetch([])
    for count in (0, 1, 3):
        for step in range(count):
            (tmp_path / "state").write_bytes(bytes([step]) * sizes["two"])
            store.save_checkpoint(STAGE, "b" * 64, step, tmp_path / "state")
        store.drop_checkpoints(STAGE, "b" * 64)
        assert since() == checkpoints(count, sizes["two"])
    assert store.load_checkpoint(STAGE, "c" * 64) is None
    assert since() == LOAD_CHECKPOINT


def test_the_probe(asked):
    store, since = asked
    store.check()
    assert since() == CHECK


@pytest.mark.slow
def test_each_stage_of_the_demo(asked):
    store, since = asked
    report = plan("demo", settings=TINY_SETTINGS)
    calls = stated(report, store, source_digest)
    work = Census(calls, lambda call, dataset, _: preview(dataset, call.data)).work
    sizes, found = {}, {}
    bill = Bill(calls, sizes, {ref: one.units for ref, one in work.items()})
    for ref, call in calls.items():
        run_stage(call, store, Resources(device="cpu"))
        counted = since()
        sizes[ref] = {name: one.bytes for name, one in store.manifest(ref).files.items()}
        since()
        found[call.title] = (bill.of_stage(ref), counted)
    assert {title: pair for title, pair in found.items() if pair[0] != pair[1]} == {}
    assert len(found) == 24
