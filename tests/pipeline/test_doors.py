"""Whatever starts a flow, nobody but its user is let in: not from another machine, not as another user of this one."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.stack import http
from tests.support import open_ports
from tests.support.command_server import TINY_SETTINGS
from tests.support.prefect_home import give_database
from tests.support.service_stack import needs

pytestmark = [pytest.mark.services, pytest.mark.slow]

SMALL = ("dataset.source.train_per_class=16", "train.fit.batch_size=16", "defences.*.fit.batch_size=16")
SETTINGS = (*TINY_SETTINGS, *SMALL)
FLOW = f"""
from flows.run import experiment
def test_flow():
    experiment(recipe="demo", methods="byol", settings={SETTINGS!r}, until="train")
"""
WAYS: Mapping[str, list[str]] = {
    "shell": [
        *(sys.executable, "-m", "flows.cli", "train", "demo", "--methods", "byol"),
        *(part for setting in SETTINGS for part in ("--set", setting)),
    ],
    "script": [sys.executable, "-c", f"{FLOW}\ntest_flow()"],
    "test": [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_flow.py"],
}
"""How a flow starts that nothing points at a server."""


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all."""
    home = tmp_path_factory.mktemp("home")
    give_database(home)
    return home / "prefect"


@pytest.mark.parametrize("way", WAYS)
def test_a_flow_listens_on_loopback_alone_and_refuses_strangers(way, prefect_home):
    needs("ip", "iproute2")
    with tempfile.TemporaryDirectory(prefix="doors-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "test_flow.py").write_text(FLOW)
        named = ("RAY_", "PREFECT_", "MLFLOW_", "SSL_BACKDOOR_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(named)}
        env |= {"HOME": str(folder), "PREFECT_HOME": str(prefect_home), "TMPDIR": name}
        env |= {"PYTHONPATH": os.pathsep.join(sys.path), "DO_NOT_TRACK": "1"}
        command = [*open_ports.ALONE, sys.executable, "-m", open_ports.__name__, "watch", *WAYS[way]]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["code"] == 0, found["said"]
    assert len(found["listened"]) >= 8, "Prefect's server, and Ray's servers and workers"
    assert found["outside"] == []
    assert found["answers"] == {}
    assert len(found["readable"]) == 1, "Ray's folder"
    if os.geteuid() == 0:
        assert list(found["readable"].values()) == [[]]
    assert found["left"] == []


def test_the_pages_of_a_home_ask_for_the_password_that_was_told(tmp_path):
    give_database(tmp_path / "home")
    env = {**os.environ, "SSL_BACKDOOR_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "flows.cli", "browse"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shell:
        lines = [shell.stdout.readline() for _ in range(3)]
        prefect, login = re.fullmatch(r"Prefect  (http://\S+)  (lab:\w{32})\n", lines[0]).groups()
        mlflow, user, password = re.fullmatch(r"MLflow   (http://\S+)  user (\S+), password (\S+)\n", lines[1]).groups()
        pages = (f"{prefect}/api/admin/version", f"{mlflow}/")
        assert [http.request(page)[0] for page in pages] == [401, 401]
        assert [http.request(page, login=login)[0] for page in pages] == [200, 200]
        assert login == f"{user}:{password}"
        shell.send_signal(signal.SIGINT)
        assert shell.wait(180) == 0
        assert shell.stderr.read() == ""
    for page in pages:
        assert http.request(page)[0] == 0
