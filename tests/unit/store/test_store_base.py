import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from ssl_backdoor.errors import SpecError, StoreError
from ssl_backdoor.store import Manifest, open_store
from ssl_backdoor.store.base import Checkpoint, check_name, manifest_bytes, newest_first, stale_checkpoints
from ssl_backdoor.store.local import folder_of
from tests.support import ROOT


@pytest.mark.parametrize(
    "name", ["a", "a.txt", "shards/train-000000.tar", "..a/b..", ".hidden", "sub/manifest.json", "é"]
)
def test_a_name_inside_the_artifact_passes(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "a/../b", "a//b", "a/", "./a", "a\\b", "a\nb", "a\0b", "\udc80", "manifest.json"]
)
def test_a_name_that_escapes_is_refused(name):
    with pytest.raises(StoreError, match="relative path inside the artifact"):
        check_name(name)


@pytest.mark.parametrize("change", [{"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, {"parts": "../other"}])
def test_a_hostile_manifest_is_refused(change):
    plain = {"stage": "train", "key": "k", "spec": {}, "inputs": {}, "files": {}, "summary": {}, "versions": {}}
    assert Manifest(**plain, seconds=1.0).parts == ""
    with pytest.raises(StoreError, match="relative path"):
        Manifest(**{**plain, **change}, seconds=1.0)


def test_a_manifest_carries_versions_and_no_paths(tmp_path):
    ref = open_store(str(tmp_path)).ref("poison", "k")
    data = manifest_bytes(
        ref,
        {},
        spec={"trigger": {"file": "/srv/someone/secret place/trigger.png", "size_px": 6}},
        inputs={"dataset": "0" * 64},
        summary={"worst": float("nan"), "sizes": (1, 2), "at": f"file://{tmp_path}/x"},
        seconds=1.5,
    )
    found = json.loads(data)
    assert found["spec"] == {"trigger": {"file": "trigger.png", "size_px": 6}}
    assert found["summary"] == {"worst": None, "sizes": [1, 2], "at": "x"}
    versions = {"python", "machine", "ssl-backdoor", "numpy", "torch"}
    assert set(found["versions"]) == versions | ({"commit"} if (Path(__file__).parents[3] / ".git").exists() else set())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", found["created"])
    assert found["versions"]["numpy"] == np.__version__
    assert str(tmp_path) not in data.decode()


def test_a_summary_that_is_not_json_is_a_programming_error(tmp_path):
    ref = open_store(str(tmp_path)).ref("poison", "k")
    with pytest.raises(TypeError, match="int64"):
        manifest_bytes(ref, {}, spec={}, inputs={}, summary={"n": np.int64(3)}, seconds=0.0)


def test_the_digest_tells_content_and_not_who_made_it():
    plain = {"stage": "train", "key": "k", "spec": {}, "inputs": {}, "summary": {}, "versions": {}}
    a, b = {"bytes": 1, "sha256": "a" * 64}, {"bytes": 1, "sha256": "b" * 64}
    first = Manifest(**plain, files={"x": a, "y": b}, seconds=1.0)
    assert Manifest(**plain, files={"y": b, "x": a}, seconds=2.0, parts="q").digest == first.digest
    assert Manifest(**plain, files={"x": b, "y": a}, seconds=1.0).digest != first.digest


def test_a_file_entry_needs_a_digest():
    with pytest.raises(ValidationError):
        Manifest.model_validate_json('{"stage":"train","key":"k","files":{"x":{"bytes":1,"sha256":"zz"}}}')


def test_checkpoints_are_ordered_by_step_and_the_oldest_go():
    a, b = "a" * 64, "b" * 64
    names = [f"step-000900.{a}.ckpt", f"step-1000000.{a}.ckpt", f"step-000100.{a}.ckpt", ".unfinished", "step-1.ckpt"]
    ordered = newest_first(names)
    assert [each.step for each in ordered] == [1_000_000, 900, 100]
    assert [each.name for each in ordered] == [names[1], names[0], names[2]]
    assert [each.step for each in stale_checkpoints(ordered, ordered[0])] == [100]
    again = [Checkpoint(300, b), Checkpoint(300, a), Checkpoint(200, a), Checkpoint(100, a)]
    assert stale_checkpoints(again, Checkpoint(300, a)) == [Checkpoint(300, b), Checkpoint(100, a)]
    late = [Checkpoint(300, a), Checkpoint(200, a), Checkpoint(150, a)]
    assert stale_checkpoints(late, Checkpoint(150, a)) == []


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("ftp://host/x", "found ftp:"),
        ("", "found ''; name a folder"),
        ("file:///x%00", "name a folder"),
        ("a\0b", "name a folder"),
        ("~nosuch/x", "a user without a home"),
        ("file://me:hunter2@host/x", "three slashes"),
        ("file:/x", "found file:"),
        ("https://host/x", "found https:"),
        ("gs://bucket/x", "found gs:"),
        ("s3:/bucket/x", "s3://bucket/prefix"),
        ("s3:bucket/x", "s3://bucket/prefix"),
        ("S3A://bucket/x", "s3://bucket/prefix"),
        ("s3n://AKIA:hunter2@bucket/x", "s3://bucket/prefix"),
        ("s3//bucket/x", "s3://bucket/prefix"),
        (" s3://bucket/x", "s3://bucket/prefix"),
        ("minio://host:9000/bucket", "s3://bucket/prefix"),
        ("arn:aws:s3:::bucket/x", "s3://bucket/prefix"),
        ("https://bucket.s3.eu-central-1.amazonaws.com/x", "AWS_ENDPOINT_URL"),
        ("https://AKIA:hunter2@s3.amazonaws.com/bucket", "AWS_ENDPOINT_URL"),
        ("s3.amazonaws.com/bucket", "AWS_ENDPOINT_URL"),
        ("file://host/x", "three slashes"),
        ("s3://", "no bucket"),
        ("s3:///x", "no bucket"),
        ("s3://AKIA:hunter2@bucket/x", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_an_impossible_uri_is_refused_without_repeating_secrets(uri, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=sentence) as caught:
        open_store(uri)
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["s3/store", "a:b", "minio", "file", "what? 100% #1 é"])
def test_folders_with_odd_names_are_folders(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store(name)
    store.check()
    assert folder_of(store.root) == tmp_path / name


def test_plain_paths_and_file_uris_name_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = tmp_path / "a b#c"
    assert folder_of("a b#c") == folder_of(str(place)) == folder_of(place.as_uri()) == place
    assert folder_of("~/x") == tmp_path / "home/x"
    assert open_store("a b#c").root == open_store(place.as_uri()).root == place.as_uri()


def test_the_local_store_imports_neither_boto3_nor_torch(tmp_path):
    code = (
        "import sys, ssl_backdoor.store as s; s.open_store(sys.argv[1]); print({'boto3', 'torch'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.check_output(command, text=True, cwd=ROOT).strip() == "set()"
