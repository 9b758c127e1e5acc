"""A training is killed; it resumes from its checkpoint and ends as if nothing had happened."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ssl_backdoor.specs import Resources
from ssl_backdoor.stages import run_stage
from ssl_backdoor.store import open_store
from tests.support import ray_training
from tests.support.cli_process import marked
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]


def processes(title: str, mark: str) -> list[int]:
    """Ids of the processes whose title begins so and whose environment holds ``mark``."""
    return [pid for pid, one in marked(mark).items() if one.startswith(title)]


@pytest.mark.parametrize(("workers", "title"), [(1, "ray::train under test"), (2, "ray::RayTrainWorker")])
def test_killed_worker_resumes_and_changes_nothing(tmp_path, workers, title):
    store, mark = tmp_path / "store", f"SSL_BACKDOOR_HOME={tmp_path}"
    command = [sys.executable, ray_training.__file__, str(store), str(workers)]
    env = {**os.environ, "SSL_BACKDOOR_HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:

        def underway() -> bool:
            assert process.poll() is None, process.communicate()
            return bool(list(store.glob(".checkpoints/train/*/step-*.ckpt")) and processes(title, mark))

        wait_until(underway, timeout_s=400, what="a checkpoint")
        os.kill(processes(title, mark)[-1], signal.SIGKILL)
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].startswith("finished")
    assert re.search(r"WARNING train under test \(train/\w{12}\): begins on .*, attempt 2$", err, re.MULTILINE)
    assert re.search(r"train under test \(train/\w{12}\): resumes after step \d+ of 60$", err, re.MULTILINE)
    assert not list(store.glob(".checkpoints/train/*/*.ckpt"))

    calm = open_store(str(tmp_path / "calm"))
    reference = run_stage(ray_training.training(calm, workers), calm, Resources(device="cpu")).ref
    (killed,) = store.glob("train/*/backbone.safetensors")
    assert killed.parent.name == reference.key
    expected, found = load_file(calm.fetch(reference) / "backbone.safetensors"), load_file(killed)
    if workers == 1:
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        return
    # Two replicas sum in another order: after some fifty steps the weights agree to a percent, not to a bit.
    names = [name for name in expected if expected[name].is_floating_point() and "running" not in name]
    ours, theirs = (torch.cat([weights[name].flatten() for name in names]) for weights in (found, expected))
    assert (ours - theirs).norm() < 0.02 * theirs.norm()
