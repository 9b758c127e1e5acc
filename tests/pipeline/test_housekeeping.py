"""`status` and `gc` on a real S3 server and through the command line; a bucket copied while runs write to it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from flows.commands.gc import GcOptions, collect, render
from ssl_backdoor.store import open_store
from ssl_backdoor.store.garbage import garbage, sweep
from ssl_backdoor.store.s3 import S3Store
from ssl_backdoor.store.s3_contents import S3Contents
from ssl_backdoor.store.survey import contents_of, survey
from tests.support import ROOT, store_commits
from tests.support.command_server import shell
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services
EVERYTHING = GcOptions(delete=True, unreached=True, older_than_days=0)
RUBBISH = GcOptions(delete=True, older_than_days=0)


@pytest.fixture
def prefix(request):
    return f"housekeeping/{request.node.name}/"


@pytest.fixture
def store(object_store, environment, prefix):
    return open_store(f"s3://{object_store.bucket}/{prefix}")


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def make(store, stage, name, tmp_path, **inputs):
    files = tmp_path / "files" / name
    (files / "shards").mkdir(parents=True, exist_ok=True)
    (files / "hello.txt").write_text("hello")
    (files / "shards" / "empty.tar").touch()
    spec = {"recipe": name, "runs": [{}]} if stage == "report" else {}
    keys = {role: key_of(one) for role, one in inputs.items()}
    return store.commit(stage, key_of(name), files, spec=spec, inputs=keys, summary={}, seconds=2.0)


@pytest.fixture
def chain(store, tmp_path):
    return {
        "images": make(store, "ingest", "images", tmp_path, source="raw"),
        "encoder": make(store, "train", "encoder", tmp_path, dataset="images"),
        "page": make(store, "report", "page", tmp_path, model="encoder"),
    }


def begin_upload(server, key: str) -> str:
    """An upload in parts whose writer was killed."""
    client = server.client()
    upload = client.create_multipart_upload(Bucket=server.bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=server.bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(5 << 20))
    return upload


def test_what_crashes_leave_on_s3_goes_and_nothing_else(store, chain, object_store, environment, prefix, tmp_path):
    wanted = object_store.keys(prefix)
    client, state = object_store.client(), tmp_path / "state"
    state.write_text("state")
    for key in (f"train/{key_of('encoder')}/{'a' * 32}/lost-a-race", f"train/{key_of('gone')}/{'b' * 32}/part"):
        client.put_object(Bucket=object_store.bucket, Key=prefix + key, Body=b"part")
    store_commits.kill(store_commits.start(store.root, tmp_path / "files" / "images", "killed", environment))
    begin_upload(object_store, f"{prefix}train/{key_of('large')}/{'c' * 32}/large.bin")
    for name in ("encoder", "unfinished"):
        store.save_checkpoint("train", key_of(name), 10, state)
    client.put_object(Bucket=object_store.bucket, Key=f"{prefix}notes/mine.txt", Body=b"mine")
    before = object_store.keys(prefix)

    told = collect(store, GcOptions(older_than_days=0))
    assert object_store.keys(prefix) == before
    assert {
        one["name"].split("/")[1][:8] if "/" in one["name"] else one["name"]: one["bytes"] for one in told["items"]
    } == {
        key_of("encoder")[:8]: 4,
        key_of("gone")[:8]: 4,
        store_commits.KEY[:8]: 5,
        key_of("large")[:8]: 5 << 20,
        "train": 5,
    }
    assert collect(store, GcOptions(delete=True))["items"] == []  # all of it is young

    told = collect(store, RUBBISH)
    assert len(told["items"]) == 6
    assert sorted(object_store.keys(prefix)) == sorted([*wanted, f"{prefix}notes/mine.txt"])
    assert not client.list_multipart_uploads(Bucket=object_store.bucket, Prefix=prefix).get("Uploads")
    assert told["unknown"] == ["notes/mine.txt"]
    assert all((store.fetch(ref) / "hello.txt").read_text() == "hello" for ref in chain.values())
    assert list(render(collect(store, EVERYTHING)))[-1] == "nothing to delete"


def test_the_servers_clock_counts_not_this_machines(store, object_store, prefix, monkeypatch):
    key = f"{prefix}train/{key_of('running')}/{'a' * 32}/part"
    object_store.client().put_object(Bucket=object_store.bucket, Key=key, Body=b"part")
    assert abs(contents_of(store).clock_s() - time.time()) < 30
    ahead_s = time.time() + 100 * 86_400
    monkeypatch.setattr(time, "time", lambda: ahead_s)
    told = collect(store, GcOptions(delete=True))
    assert (told["items"], len(told["young"])) == ([], 1)
    assert object_store.keys(prefix) == [key]


def test_the_manifest_goes_first_and_the_rest_is_taken_up(store, chain, object_store, prefix, tmp_path, monkeypatch):
    lonely = make(store, "train", "lonely", tmp_path, dataset="images")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(S3Contents, "delete_entries", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(store, EVERYTHING)
    assert store.find("train", lonely.key) is None
    assert len(object_store.keys(f"{prefix}train/{lonely.key}/")) == 2
    make(store, "train", "lonely", tmp_path, dataset="images")  # nothing stands in a run's way
    assert [one["files"] for one in collect(store, RUBBISH)["items"]] == [2]
    assert (store.fetch(lonely) / "hello.txt").read_text() == "hello"
    assert set(survey(store).artifacts) == {*chain.values(), lonely}


def test_a_commit_that_ends_after_the_survey_keeps_its_parts(store, chain, object_store, prefix):
    client, manifest = object_store.client(), f"{prefix}train/{chain['encoder'].key}/manifest.json"
    body = client.get_object(Bucket=object_store.bucket, Key=manifest)["Body"].read()
    client.delete_object(Bucket=object_store.bucket, Key=manifest)
    rubbish = garbage(survey(store), 0, 0).rubbish
    assert len(rubbish) == 1
    client.put_object(Bucket=object_store.bucket, Key=manifest, Body=body)
    assert list(sweep(store, rubbish)) == []
    assert (store.fetch(chain["encoder"]) / "hello.txt").read_text() == "hello"


def test_manifests_are_downloaded_once_and_an_altered_one_is_seen(store, chain, object_store, prefix, monkeypatch):
    read, asked = S3Store.manifest, []

    def counted(self, ref):
        asked.append(ref)
        return read(self, ref)

    monkeypatch.setattr(S3Store, "manifest", counted)
    assert survey(store).artifacts.keys() == set(chain.values())
    assert len(asked) == 3
    assert survey(store).artifacts.keys() == set(chain.values())
    assert len(asked) == 3
    key = f"{prefix}train/{chain['encoder'].key}/manifest.json"
    object_store.client().put_object(Bucket=object_store.bucket, Key=key, Body=b"{}")
    found = survey(store)
    assert list(found.unreadable) == [chain["encoder"]]


def copy_objects(server, source: str, target: str, is_manifest: bool) -> None:
    """What `aws s3 sync` does with one kind of objects: those that are not there yet."""
    client, held = server.client(), set(server.keys(target))
    for key in server.keys(source):
        name = key.removeprefix(source)
        if name.endswith("/manifest.json") == is_manifest and target + name not in held:
            place = {"Bucket": server.bucket, "Key": key}
            client.copy_object(Bucket=server.bucket, Key=target + name, CopySource=place)


def test_a_bucket_copied_manifests_first_while_runs_commit_is_whole(store, chain, object_store, prefix, tmp_path):
    stop, made = threading.Event(), []

    def commit_on() -> None:
        while not stop.wait(0.05):  # as many as are needed, no more: each is copied twice
            made.append(make(store, "evaluate", f"scores {len(made)}", tmp_path, model="encoder"))

    writer = threading.Thread(target=commit_on)
    writer.start()
    backup, restored = f"{prefix}backup/", f"{prefix}restored/"
    try:
        for is_manifest in (True, False):  # what a manifest names was there before it
            start = len(made)
            wait_until(lambda wanted=start + 3: len(made) >= wanted, timeout_s=30, what="three commits")
            for stage in ("ingest", "train", "evaluate", "report"):
                copy_objects(object_store, f"{prefix}{stage}/", f"{backup}{stage}/", is_manifest)
    finally:
        stop.set()
        writer.join()
    for is_manifest in (False, True):
        copy_objects(object_store, backup, restored, is_manifest)
    again = open_store(f"s3://{object_store.bucket}/{restored}")
    found = survey(again)
    assert {ref.key for ref in chain.values()} < {ref.key for ref in found.artifacts}
    assert 3 <= len(found.artifacts) - len(chain) < len(made)
    for ref in found.artifacts:
        assert (again.fetch(ref) / "hello.txt").read_text() == "hello"
    assert found.attempts  # of those that were finished between the two passes: `gc` takes them
    assert not found.unreadable


# ---------------------------------------------------------------------------------------- the command line


RECORD = """
import sys
from tasks.tracking import mlflow
client = mlflow.MlflowClient()
experiment = client.create_experiment("page")
for key, status in ((sys.argv[1], "FINISHED"), (sys.argv[2], "FAILED")):
    run = client.create_run(experiment, tags={"ssl_backdoor.report_key": key})
    client.set_terminated(run.info.run_id, status)
"""


def test_status_and_gc_from_a_shell(tmp_path):
    (tmp_path / "home").mkdir()
    store = open_store(str(tmp_path / "home" / "store"))
    made = [make(store, "ingest", "images", tmp_path), make(store, "report", "page", tmp_path, dataset="images")]
    half = make(store, "report", "half recorded", tmp_path, dataset="images")
    record = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RECORD, made[1].key, half.key]
    subprocess.run(command, env={**os.environ, **record}, cwd=tmp_path, check=True, capture_output=True)
    with shell(tmp_path) as run:
        told = run("status", "--json")
        assert told.code == 0, told.stderr
        status = json.loads(told.stdout)
        assert {stage: one["finished"] for stage, one in status["stages"].items() if one["finished"]} == {
            "ingest": 1,
            "report": 2,
        }
        assert status["mlflow"] == {"missing": 1}
        assert "MLflow:     1 of 2 reports not recorded: ssl-backdoor reindex" in run("status").stdout
        forgotten = run("gc", "--older-than", "0", "--unreached", "--delete", "--forget", half.key[:9], "--json")
        assert forgotten.code == 0, forgotten.stderr
        assert [one["name"] for one in json.loads(forgotten.stdout)["items"]] == [f"report/{half.key}"]
        assert set(survey(store).artifacts) == set(made)
        assert run("gc", "--unreached", "--older-than", "0").stdout == "nothing to delete\n"
        missing = tmp_path / "no-store"
        for refused in (
            run("gc", "--store", missing),
            run("status", "--store", missing),
            run("gc", "--forget", "nope"),
        ):
            assert (refused.code, len(refused.stderr.splitlines()), refused.stdout) == (2, 1, "")
        assert not missing.exists()
