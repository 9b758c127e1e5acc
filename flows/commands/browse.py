"""The pages of a home that no services run for: Prefect's and MLflow's, on loopback, behind a password of this call."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, NamedTuple

import httpx

from flows import settings
from flows.terminal.output import print_lines
from ssl_backdoor.errors import SpecError, TrainingError
from tasks.embedded_prefect import last_error, terminate
from tasks.guard import own_addresses

USER = "lab"
_READY_S = 180.0
_POLL_S = 0.2
_PORTS = {"Prefect": 4200, "MLflow": 5000}
_HEALTH = {"Prefect": "api/health", "MLflow": "health"}


class _Server(NamedTuple):
    process: "subprocess.Popen[bytes]"
    port: int
    output: IO[bytes]


def browse() -> int:
    """Serve until Ctrl-C.

    Raises:
        SpecError: this shell is pointed at servers that have pages of their own.
        TrainingError: a server ended, or did not answer in time.
    """
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        if (place := os.environ.get(name, "")).startswith("http"):
            raise SpecError(f"{name} names a server, {place}: open that page, or unset it to see this home's own runs")
    password = secrets.token_hex(16)
    with _serve(password) as servers:
        for name, server in servers.items():
            _wait_for_answer(name, server)
        print_lines(
            [
                f"Prefect  http://127.0.0.1:{servers['Prefect'].port}  {USER}:{password}",
                f"MLflow   http://127.0.0.1:{servers['MLflow'].port}  user {USER}, password {password}",
                f"Runs under {str(settings.HOME)!r}. Ctrl-C ends both.",
            ]
        )
        with suppress(KeyboardInterrupt):
            while True:
                for name, server in servers.items():
                    _check_runs(name, server)
                time.sleep(_POLL_S)
    return 0


@contextmanager
def _serve(password: str) -> Iterator[Mapping[str, _Server]]:
    ports = {name: _port(wanted) for name, wanted in _PORTS.items()}
    commands = {
        "Prefect": [sys.executable, "-m", "tasks.prefect_server", "--port", str(ports["Prefect"])],
        "MLflow": [
            *(sys.executable, "-m", "mlflow", "server", "--app-name", "ssl-backdoor", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(ports["MLflow"])),
            *("--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"]),
        ],
    }
    environment = {
        **os.environ,
        "PYTHONSAFEPATH": "1",  # no module is taken from the working folder
        "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{password}",
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{ports['Prefect']}/api",
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": password,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(sorted(own_addresses(ports["MLflow"]))),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with ExitStack() as ending:
        servers = {}
        for name, command in commands.items():
            output = ending.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
            ending.callback(terminate, process)
            servers[name] = _Server(process, ports[name], output)
        yield servers


def _wait_for_answer(name: str, server: _Server) -> None:
    deadline = time.monotonic() + _READY_S
    while not _answers(f"http://127.0.0.1:{server.port}/{_HEALTH[name]}"):
        _check_runs(name, server)
        if time.monotonic() > deadline:
            raise TrainingError(f"{name}'s server does not answer, {last_error(server.output)}")
        time.sleep(_POLL_S)


def _check_runs(name: str, server: _Server) -> None:
    if (code := server.process.poll()) is not None:
        raise TrainingError(f"{name}'s server ended with code {code}, {last_error(server.output)}")


def _answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url, trust_env=False, timeout=5.0).status_code == httpx.codes.OK
    return False


def _port(wanted: int) -> int:
    """``wanted`` where nobody listens there, else one that is free."""
    for port in (wanted, 0):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)) as free:
            return int(free.getsockname()[1])
    raise SpecError("no port of 127.0.0.1 is free")
