"""A training is killed or interrupted; it goes on from its checkpoint and ends as if nothing had happened."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import ray_worker
import torch
from command_server import shell
from PIL import Image
from safetensors.torch import load_file
from services import wait_until

from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import Resources
from ssl_backdoor.stages import run_stage
from ssl_backdoor.store import open_store

pytestmark = [pytest.mark.services, pytest.mark.slow]


def processes(title: str, mark: str) -> list[int]:
    """Ids of the processes whose title begins so and whose environment holds ``mark``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                titled = (entry / "cmdline").read_bytes().startswith(title.encode())
                if titled and mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


@pytest.mark.parametrize(("workers", "title"), [(1, "ray::train under test"), (2, "ray::RayTrainWorker")])
def test_killed_worker_resumes_and_changes_nothing(tmp_path, workers, title):
    store, mark = tmp_path / "store", f"SSL_BACKDOOR_HOME={tmp_path}"
    command = [sys.executable, ray_worker.__file__, str(store), str(workers)]
    env = {**os.environ, "SSL_BACKDOOR_HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:

        def underway() -> bool:
            assert process.poll() is None, process.communicate()
            return bool(list(store.glob(".checkpoints/train/*/step-*.ckpt")) and processes(title, mark))

        wait_until(underway, timeout_s=120, what="a checkpoint")
        os.kill(processes(title, mark)[-1], signal.SIGKILL)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].startswith("finished")
    assert re.search(r"WARNING train under test \(train/\w{12}\): begins on .*, attempt 2$", err, re.MULTILINE)
    assert re.search(r"train under test \(train/\w{12}\): goes on after step \d+ of 120$", err, re.MULTILINE)
    assert not list(store.glob(".checkpoints/train/*/*.ckpt"))

    calm = open_store(str(tmp_path / "calm"))
    reference = run_stage(ray_worker.training(calm, workers), calm, Resources(device="cpu")).ref
    (killed,) = store.glob("train/*/backbone.safetensors")
    assert killed.parent.name == reference.key
    expected, found = load_file(calm.fetch(reference) / "backbone.safetensors"), load_file(killed)
    if workers == 1:
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        return
    # Two replicas sum in another order: after a hundred steps the weights agree to a percent, not to a bit.
    names = [name for name in expected if expected[name].is_floating_point() and "running" not in name]
    ours, theirs = (torch.cat([weights[name].flatten() for name in names]) for weights in (found, expected))
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


def pictures(folder: Path) -> Path:
    """Noise in two classes, 60 training and 10 test images each."""
    for split, count in (("train", 60), ("test", 10)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = stream(0, split, name, index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index:03d}.png")
    return folder


def test_interrupt_keeps_what_is_done(tmp_path):
    store = tmp_path / "store"
    settings = ('dataset.classes=["cat","dog"]', "attack.target_class=cat", "train.fit.batch_size=16")
    longer = [part for setting in (*settings, "train.fit.epochs=150") for part in ("--set", setting)]
    longer += ["--data", pictures(tmp_path / "pictures"), "--pairs", "1", "--store", store]
    with shell(tmp_path) as run, ThreadPoolExecutor(1) as pool:

        def interrupt() -> None:
            wait_until(lambda: list(store.glob(".checkpoints/train/*/*.ckpt")), timeout_s=200, what="a checkpoint")
            run.interrupt()

        pressed = pool.submit(interrupt)
        outcome = run("train", "cifar10_byol", *longer)
        pressed.result(timeout=1)
        assert outcome.code == 130, outcome
        assert "the same command goes on" in outcome.stderr
        assert "Traceback" not in outcome.stderr
        kept = list(store.glob(".checkpoints/train/*/*.ckpt"))
        assert kept
        mark = f"SSL_BACKDOOR_HOME={tmp_path}/"
        wait_until(lambda: not processes("ray::train", mark), timeout_s=20, what="the workers to end")
        assert run("train", "cifar10_byol", *longer).code == 0
        assert len(list(store.glob("train/*/manifest.json"))) == 3
