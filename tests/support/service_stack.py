"""A service stack under a folder of its own, driven as a user drives it: `up`, `status`, `down`, a shell beside it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.stack import config as configuration
from infra.stack import http, processes, service
from infra.stack.services import SERVICES
from tests.support import ROOT

NAMES = [each.name for each in SERVICES]


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Stack:
    """A stack under ``home``, on free ports."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.folder = home.resolve() / "stack"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SSL_BACKDOOR_")}
        self.environment = {**inherited, "SSL_BACKDOOR_HOME": str(home), "SSL_BACKDOOR_PORTS": "free", **settings}

    def begin(self, action: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "infra.stack", action]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A test run in the background of a shell inherits an ignored SIGINT, and hands it on.
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, preexec_fn=_interruptible, **streams)

    def __call__(self, action: str) -> tuple[int, str, str]:
        with self.begin(action) as running:
            out, err = running.communicate(timeout=600)
        return running.returncode, out, err

    @property
    def config(self) -> configuration.Config:
        config = configuration.load(self.folder)
        assert config is not None
        return config

    def members(self) -> list[processes.Facts]:
        """All its processes: marked ones, and the recorded with their sessions."""
        found = {each.process: each for each in processes.members(self.folder, None)}
        for name in NAMES:
            leader = service.read_process(self.config, name)
            found |= {each.process: each for each in processes.members(self.folder, name, leader)}
        return list(found.values())

    def titles(self) -> dict[int, str]:
        """Title of each of its processes."""
        found = {}
        for each in self.members():
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{each.process.pid}/cmdline").read_bytes()
                found[each.process.pid] = title.replace(b"\0", b" ").decode(errors="replace")
        return found

    def log(self, name: str) -> str:
        """What a service wrote."""
        return self.config.log(name).read_text()

    @property
    def client_environment(self) -> dict[str, str]:
        """A shell's after `eval "$(ssl-backdoor env)"`."""
        return {**self.environment, **json.loads((self.folder / "config.json").read_text())["environment"]}

    def client(self, script: str, *arguments: str, **changed: str) -> subprocess.CompletedProcess:
        """Run ``script`` in a shell that has the client environment."""
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env={**self.client_environment, **changed},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def deploy(self, name: str, *options: str, **parameters: object) -> subprocess.CompletedProcess:
        """`prefect deployment run NAME`, as CI does."""
        given = [part for key, value in parameters.items() for part in ("-p", f"{key}={json.dumps(value)}")]
        prefect = str(Path(sys.executable).parent / "prefect")
        return subprocess.run(
            [prefect, "--no-prompt", "deployment", "run", name, *given, *options],
            env=self.client_environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=800,
        )

    def api(self, page: str, body: object = None):
        """An answer of Prefect's server."""
        status, text = http.ask_prefect(self.config, page, body, timeout_s=60.0)
        assert status in (200, 201), text
        return json.loads(text)

    def mlflow(self, page: str, body: object):
        """An answer of MLflow's server."""
        login = ":".join(configuration.mlflow_login(self.config).values())
        status, text = http.request(f"{self.config.url('mlflow')}/api/2.0/mlflow/{page}", body, 20.0, login=login)
        assert status == 200, text
        return json.loads(text)

    def ask(
        self, name: str, parameters: object, environment: Mapping[str, str] = {}, **more: object
    ) -> tuple[int, str]:
        """Ask the server for a run of a deployment, as its page, a client or a schedule does; status and answer."""
        place = f"deployments/{self.api(f'deployments/name/{name}')['id']}"
        variables = {"env": dict(environment)} if environment else {}
        body = {"parameters": parameters, "job_variables": variables, **more}
        return http.ask_prefect(self.config, f"{place}/create_flow_run", body, timeout_s=60.0)

    def queue(self, name: str, parameters: object, environment: Mapping[str, str] = {}, **more: object) -> str:
        """The same of a run that the server takes; its id."""
        status, answer = self.ask(name, parameters, environment, **more)
        assert status == 201, answer
        return str(json.loads(answer)["id"])

    def ended(self, *run_ids: str, timeout_s: float) -> list[dict]:
        """These flow runs, all over."""
        search = {"flow_runs": {"id": {"any_": run_ids}}}
        deadline = time.monotonic() + timeout_s
        while not all(map(is_over, found := self.api("flow_runs/filter", search))):
            assert time.monotonic() < deadline, [one for one in found if not is_over(one)]
            time.sleep(0.5)
        return found

    def flow_run(self, asked: subprocess.CompletedProcess) -> dict:
        """The flow run that ``deploy`` made, as it is now."""
        found = re.search(r"UUID: ([0-9a-f-]{36})", asked.stdout)
        assert found is not None, asked.stdout + asked.stderr
        return self.api(f"flow_runs/{found.group(1)}")


def is_over(run: Mapping[str, Any]) -> bool:
    """Whether a flow run has its last state."""
    return run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def needs(program: str, package: str) -> None:
    """Fail where a Debian package is missing, and name it."""
    if shutil.which(
        program, path=f"{os.environ['PATH']}:{':'.join(map(str, Path('/usr/lib').glob('postgresql/*/bin')))}"
    ):
        return
    pytest.fail(f"the program {program} is missing: apt-get install {package}")


@contextlib.contextmanager
def running_stack(home: Path) -> Iterator[Stack]:
    """A stack that is up, and down on leaving."""
    needs("initdb", "postgresql")
    stack = Stack(home)
    try:
        code, out, err = stack("up")
        assert code == 0, out + err
        yield stack
    finally:
        stack("down")
