"""A training spans nodes that share no folder, and goes on with fewer where that was asked for."""

import json
import os
import subprocess
import sys
import tempfile

import pytest

from ssl_backdoor.specs import Resources
from ssl_backdoor.stages import run_stage
from ssl_backdoor.store import open_store
from tasks.ray_group import replicas_that_train
from tests.support import ROOT, ray_training, two_nodes
from tests.support.service_stack import needs

pytestmark = [pytest.mark.services, pytest.mark.slow]


def test_a_training_over_two_nodes_loses_one_and_goes_on_with_the_other(tmp_path):
    needs("ip", "iproute2")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "SSL_BACKDOOR_"))}
    with tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp") as folder:  # Ray's sockets have short paths
        command = [*two_nodes.NAMESPACES, sys.executable, "-m", two_nodes.__name__, folder]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["networks"] == 2, "one replica on each node"
    assert told["lost_at"] < told["steps"]
    assert told["num_replicas"] == 1, "of the group that came to the end"

    alone = open_store(str(tmp_path / "alone"))
    call = ray_training.training(alone, 2, two_nodes.EPOCHS)
    reference = alone.manifest(run_stage(call, alone, Resources(device="cpu")).ref)
    assert told["key"] == reference.key
    assert told["final_loss"] == pytest.approx(reference.summary["final_loss"], rel=0.05)


@pytest.mark.parametrize(("world", "groups", "expected"), [(2, 2, 2), (3, 4, 2), (3, 2, 2), (5, 7, 1), (4, 12, 4)])
def test_workers_too_many_for_the_groups_wait(world, groups, expected):
    assert replicas_that_train(world, groups) == expected
