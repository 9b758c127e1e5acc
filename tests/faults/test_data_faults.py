"""Full disks, damaged shards and damaged checkpoints: found in time, told in a sentence, and mended by the same run."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_backdoor.errors import StoreError
from ssl_backdoor.specs import NoAttackSpec
from ssl_backdoor.stages import PoisonStage, StageCall, run_stage
from ssl_backdoor.store import open_store
from tests.support import ROOT, full_disk, halting_training
from tests.support.halting_training import EVERY_STEPS, HALT_STEP, IMAGES, training

pytestmark = pytest.mark.services


# ------------------------------------------------------------------------------------------- no room


def namespace(folder: Path = Path("/tmp")) -> list[str]:
    """The command in front of one that may mount a file system, as this user or as its root; empty where none may."""
    for command in (["unshare", "-Urm"], ["unshare", "-m"]):
        with_it = [*command, "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
        if shutil.which("unshare") and subprocess.run(with_it, capture_output=True, check=False).returncode == 0:
            return command
    return []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["limit", *(["mount"] if namespace() else [])])
def test_no_room_while_shards_and_artifacts_are_written(tmp_path, way):
    """On a file system that is really full where this user can have one, and everywhere under a limit of file size."""
    prefix = namespace(tmp_path) if way == "mount" else []
    command = [*prefix, sys.executable, "-m", full_disk.__name__, way, str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    advice = "disk full; free some space" if way == "mount" else "a file grew too large"
    places = {"ingest": "the folder", "commit": "the store file://", "train": "the folder for temporary files"}
    for name, place in places.items():
        sentence = told[name]["sentence"]
        assert sentence.startswith(f"cannot use {place}"), sentence
        assert advice in sentence
        assert len(sentence.splitlines()) == 1
        assert told[name]["left"] == []
    calm = open_store(str(tmp_path / "calm"))
    assert told["ingest"]["afterwards"] == calm.manifest(run_stage(full_disk.IMAGES, calm).ref).digest
    assert told["commit"]["afterwards"] == told["ingest"]["afterwards"]
    assert told["train"]["afterwards"] == calm.manifest(halting_training.run(training(calm), calm).ref).digest


# ------------------------------------------------------------------------------------------- damage


class Behind:
    """The files of one store as they lie there, on disk or in a bucket, read and written behind the store's back."""

    def __init__(self, folder: Path | None = None, server=None, prefix: str = "") -> None:
        self._folder, self._server, self._prefix = folder, server, prefix
        self.store = open_store(str(folder) if folder else f"s3://{server.bucket}/{prefix}")

    def names(self, start: str) -> list[str]:
        if self._folder:
            return sorted(
                str(path.relative_to(self._folder)) for path in (self._folder / start).rglob("*") if path.is_file()
            )
        return [key.removeprefix(f"{self._prefix}/") for key in self._server.keys(f"{self._prefix}/{start}")]

    def read(self, name: str) -> bytes:
        if self._folder:
            return (self._folder / name).read_bytes()
        place = {"Bucket": self._server.bucket, "Key": f"{self._prefix}/{name}"}
        return self._server.client().get_object(**place)["Body"].read()

    def write(self, name: str, data: bytes) -> None:
        if self._folder:
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(data)
        else:
            place = {"Bucket": self._server.bucket, "Key": f"{self._prefix}/{name}"}
            self._server.client().put_object(Body=data, **place)

    def delete(self, start: str) -> None:
        if self._folder:
            shutil.rmtree(self._folder / start)
        for name in self.names(start):
            place = {"Bucket": self._server.bucket, "Key": f"{self._prefix}/{name}"}
            self._server.client().delete_object(**place)


@pytest.fixture(params=["file", "s3"])
def behind(request, object_store, environment, prefix, tmp_path):
    if request.param == "file":
        return Behind(folder=tmp_path / "store")
    return Behind(server=object_store, prefix=prefix)


def flipped(data: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def cut(data: bytes) -> bytes:
    return data[:-1000]


@pytest.mark.parametrize("damage", ["flipped", "cut", "swapped"])
def test_a_damaged_shard_is_found_before_training(behind, damage):
    store = behind.store
    call = training(store)
    images = call.inputs["dataset"]
    first, second, _ = [name for name in behind.names(f"ingest/{images.key}") if name.endswith(".tar")]
    held, other = behind.read(first), behind.read(second)
    behind.write(first, {"flipped": flipped(held), "cut": cut(held), "swapped": other}[damage])
    if damage == "swapped":
        behind.write(second, held)
    heard = []
    with pytest.raises(StoreError) as caught:
        run_stage(call, store, on_progress=heard.append)
    sentence = str(caught.value)
    assert "shards/train-000000.tar" in sentence
    assert f"ingest/{images.key}" in sentence
    assert sentence.endswith("delete that artifact and run again")
    assert len(sentence.splitlines()) == 1
    assert heard == []
    assert behind.names(".checkpoints") == behind.names("train") == []

    digest = store.manifest(images).digest
    behind.delete(f"ingest/{images.key}")
    assert run_stage(IMAGES, store).ref == images
    assert store.manifest(images).digest == digest
    poison = StageCall(PoisonStage(attack=NoAttackSpec(), seed=0), call.inputs)
    assert not run_stage(poison, store).reused


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The training, uninterrupted: its digest."""
    store = open_store(str(tmp_path_factory.mktemp("calm")))
    return store.manifest(halting_training.run(training(store), store).ref).digest


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A store in which the training was killed after step 40: it holds the checkpoints after 30 and 40."""
    folder = tmp_path_factory.mktemp("killed")
    with subprocess.Popen(
        [sys.executable, "-m", halting_training.__name__, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.kill()
    return folder


@pytest.fixture
def interrupted(behind, killed):
    """The killed training in the store under test; the names of its checkpoints, oldest first."""
    source = Behind(folder=killed)
    for name in source.names(".checkpoints"):
        behind.write(name, source.read(name))
    older, newest = sorted(behind.names(".checkpoints"))
    assert f"step-{HALT_STEP - EVERY_STEPS:06d}." in older
    assert f"step-{HALT_STEP:06d}." in newest
    return older, newest


def resumed(store, caplog):
    """Digest of the training when it is taken up, the step it resumes after, and what it warned of."""
    steps = []

    def listen(progress):
        if progress.unit == "steps":
            steps.append(progress.done)

    caplog.clear()
    with caplog.at_level(logging.WARNING, "ssl_backdoor"):
        ref = halting_training.run(training(store), store, listen).ref
    return store.manifest(ref).digest, steps[0] - 1, [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("damage", [flipped, cut])
def test_a_damaged_checkpoint_is_skipped_for_the_older(behind, interrupted, calm, caplog, damage):
    behind.write(interrupted[1], damage(behind.read(interrupted[1])))
    digest, after, warnings = resumed(behind.store, caplog)
    assert (digest, after) == (calm, HALT_STEP - EVERY_STEPS)
    assert warnings == ["checkpoints after steps 40 are damaged and skipped; resumes from step 30"]
    assert behind.names(".checkpoints") == []


def test_without_a_whole_checkpoint_a_training_starts_anew(behind, interrupted, calm, caplog):
    for name, damage in zip(interrupted, (flipped, cut), strict=True):
        behind.write(name, damage(behind.read(name)))
    digest, after, warnings = resumed(behind.store, caplog)
    assert (digest, after) == (calm, 0)
    assert warnings == ["checkpoints after steps 40, 30 are damaged and skipped; starts again from step 0"]
    assert behind.names(".checkpoints") == []


def test_wrong_clocks_change_nothing(killed, calm, caplog, tmp_path):
    """The newest checkpoint is dated 1970 and the older 2100, and so are the shards: steps and digests alone count."""
    shutil.copytree(killed, tmp_path / "store")
    dates = [0, 4_102_444_800]
    for index, path in enumerate(sorted((tmp_path / "store").rglob("*"), reverse=True)):
        os.utime(path, (dates[index % 2], dates[index % 2]))
    older, newest = sorted((tmp_path / "store" / ".checkpoints").rglob("*.ckpt"))
    os.utime(newest, (0, 0))
    os.utime(older, (dates[1], dates[1]))
    assert resumed(open_store(str(tmp_path / "store")), caplog) == (calm, HALT_STEP, [])
