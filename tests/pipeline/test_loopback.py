"""The Ray that a shell starts for itself lives as long as the shell, and cannot be reached from another machine."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.services, pytest.mark.slow]

_PROGRAM = """
import json, os, threading
from flows import settings
settings.embed()
import ray
from flows.endings import descendants
from listening import listening, outside_loopback
from ssl_backdoor.specs import Resources
from tasks.ray_fit import connect, disconnect
stage = threading.Thread(target=connect, args=(Resources(),))
stage.start()
stage.join()
ray.get(ray.remote(lambda: 1).remote())
mine = descendants(os.getpid()) | {os.getpid()}
print(json.dumps([len(listening(mine)), sorted(outside_loopback(mine))]))
disconnect()
"""


def test_the_local_ray_cluster_outlives_the_stage_that_started_it_and_listens_on_loopback_alone(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"SSL_BACKDOOR_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", _PROGRAM], env=env, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    num_listening, outside = json.loads(ended.stdout.splitlines()[-1])
    assert num_listening >= 3
    assert outside == []
