"""The Prefect server of a shell that no variable points at one: started at once, in a process of its own.

Prefect starts one by itself where it finds none, but imports the whole server into this process first, and only then
begins to: half of what a run costs that reuses everything.
"""

import atexit
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ssl_backdoor.errors import TrainingError

_PATIENCE_S = 180.0
_ENDING_S = 5.0
_POLL_S = 0.05
_NO_PORT, _NO_START = 1, 3
"""uvicorn's exit codes where it cannot listen, and where the application does not start."""
_MORE_TRIES = {_NO_PORT: 2, _NO_START: 1}
"""On a crowded machine Prefect sometimes gives up, without a word, while it makes a new database."""
_PROGRAM = "import gc; gc.set_threshold(100_000); import uvicorn; uvicorn.main()"
"""Thresholds: as in ``flows.cli.main``."""
_ON_ITS_OWN = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""What Prefect gives its own: no pages, no schedules."""


class _Server(NamedTuple):
    process: "subprocess.Popen[bytes]"
    port: int


_server: _Server | None = None


def begin() -> None:
    """Start the server unless PREFECT_API_URL names one, and do not wait for it. Idempotent."""
    global _server
    if not os.environ.get("PREFECT_API_URL") and (_server is None or _server.process.poll() is not None):
        _server = _start()


def is_slow() -> bool:
    """Whether a server that is begun now must make its database first, which takes it some ten seconds."""
    named = os.environ.get("PREFECT_API_URL") or os.environ.get("PREFECT_API_DATABASE_CONNECTION_URL")
    return not named and not (Path(os.environ["PREFECT_HOME"]) / "prefect.db").exists()


def address() -> str | None:
    """Its API, where this shell has begun one."""
    return None if _server is None else f"http://127.0.0.1:{_server.port}/api"


@contextmanager
def used() -> Iterator[None]:
    """Wait until the server answers, where one was begun; flows in the block tell it what they do.

    Raises:
        TrainingError: it ended, or did not answer in three minutes.
    """
    global _server
    if _server is None:
        yield
        return
    _server = _answering(_server)
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    # Nobody there waits for heartbeats, and their thread makes every flow last up to a second longer.
    with temporary_settings({PREFECT_API_URL: address(), PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _start() -> _Server:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", _PROGRAM, "--factory", "prefect.server.api.server:create_app", "--lifespan", "on"]
    place = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    process = subprocess.Popen([*command, *place], env=os.environ | _ON_ITS_OWN)
    atexit.register(_end, process)  # after Prefect's own threads have told it the last they know
    return _Server(process, port)


def _answering(server: _Server) -> _Server:
    """``server``, or another where somebody else has taken its port meanwhile, once it answers."""
    deadline, tries = time.monotonic() + _PATIENCE_S, dict(_MORE_TRIES)
    while not _answers(server.port):
        code = server.process.poll()
        if code is not None and tries.get(code):
            tries[code] -= 1
            server = _start()
        elif code is not None or time.monotonic() > deadline:
            what = "does not answer" if code is None else f"ended with code {code}"
            raise TrainingError(
                f"the Prefect server of this shell {what}: look at what it says above and at the disk of PREFECT_HOME, "
                "or point PREFECT_API_URL at another (`make up`)."
            )
        time.sleep(_POLL_S)
    return server


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ENDING_S)
    try:
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/api/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        return False
    finally:
        connection.close()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
