"""The Prefect server that a flow starts where PREFECT_API_URL is unset: in its own process, with its own password.

The one that Prefect itself would start asks for no password and answers every web page; and Prefect would import the
whole server into this process first, which is half of the time of a run that reuses everything.
"""

import atexit
import http.client
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import IO, NamedTuple

from ssl_backdoor.errors import TrainingError, UserError, to_printable_line
from tasks.logs import redact

_STARTUP_TIMEOUT_S = 180.0
_TERMINATE_S = 5.0
_POLL_S = 0.05
_PROGRAM = ("-m", "tasks.prefect_server", "--socket")
_EPHEMERAL_SETTINGS = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "0",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "0",
    "PYTHONSAFEPATH": "1",
}
"""Settings of Prefect's own ephemeral server: no pages, no schedules. Its errors go to a temporary file.

Blocks and automations are left out: no run has any, and registering blocks takes a CPU second in a new home. Python
does not look for modules in the working folder, where anybody's data may be.
"""
_EXCEPTION_LINE = re.compile(r"[\w.]+(?:Error|Exception)\b")
"""Start of the line of a traceback that names the exception."""


class _Server(NamedTuple):
    process: "subprocess.Popen[bytes]"
    port: int
    secret: str
    output: IO[bytes]


_server: _Server | None = None


def start() -> None:
    """Start the server in the background unless PREFECT_API_URL names one. Idempotent."""
    global _server
    if not os.environ.get("PREFECT_API_URL") and (_server is None or _server.process.poll() is not None):
        _server = _start_process()


def needs_new_database() -> bool:
    """Whether a server started now must create its database first, which takes some ten seconds."""
    named = os.environ.get("PREFECT_API_URL") or os.environ.get("PREFECT_API_DATABASE_CONNECTION_URL")
    return not named and not (Path(os.environ["PREFECT_HOME"]) / "prefect.db").exists()


def api_url() -> str | None:
    """URL of the API of this shell's server; None if it has started none."""
    return None if _server is None else f"http://127.0.0.1:{_server.port}/api"


@contextmanager
def use_server() -> Iterator[None]:
    """Have flows in the block report to this shell's server, once it answers, unless Prefect is given another.

    Raises:
        TrainingError: it ended, or did not answer in three minutes.
        UserError: the other does not answer, or wants another password.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    if (named := PREFECT_API_URL.value()) is None:
        start()
    if named is not None:
        _check_answers(named)
    if named is not None or (server := _server) is None:
        yield
        return
    _wait_for_answer(server)
    own = {
        PREFECT_API_URL: api_url(),
        PREFECT_API_AUTH_STRING: server.secret,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # nobody there waits for them, and a flow lasts up to a second longer
    }
    with temporary_settings(own):
        yield


def _check_answers(api: str) -> None:
    """Raise a short ``UserError``, where Prefect itself would print sixty lines."""
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
        return
    except (RuntimeError, ValueError, TypeError, httpx.HTTPError) as error:  # another server's answers are no answers
        what, cure = "does not answer", "start it (`make up`), or fix or unset PREFECT_API_URL"
        status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            what = "wants another password"
            cure = "set PREFECT_API_AUTH_STRING (`ssl-backdoor env` has that of `make up`)"
    raise UserError(f"the Prefect server at {to_printable_line(api)} {what}: {cure}") from None


def _start_process() -> _Server:
    output = tempfile.TemporaryFile()  # noqa: SIM115  written to as long as the server runs; _end_server closes it
    secret = f"shell:{secrets.token_hex(32)}"
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        process = subprocess.Popen(
            [sys.executable, *_PROGRAM, str(bound.fileno())],
            env={**os.environ, **_EPHEMERAL_SETTINGS, "PREFECT_SERVER_API_AUTH_STRING": secret},
            pass_fds=[bound.fileno()],
            stdout=output,
            stderr=output,
        )
        server = _Server(process, bound.getsockname()[1], secret, output)
    atexit.register(_end_server, server)  # after Prefect's own threads have sent their last events
    return server


def _wait_for_answer(server: _Server) -> None:
    """Return once ``server`` answers."""
    deadline = time.monotonic() + _STARTUP_TIMEOUT_S
    while not _answers(server.port):
        code = server.process.poll()
        if code is not None or time.monotonic() > deadline:
            what = "does not answer" if code is None else f"ended with code {code}"
            raise TrainingError(
                f"the Prefect server of this shell {what}, {last_error(server.output)}: look at the disk of "
                "PREFECT_HOME, or point PREFECT_API_URL at another (`make up`)"
            )
        time.sleep(_POLL_S)


def last_error(output: IO[bytes]) -> str:
    """The last error that the server printed, or its last line."""
    output.seek(max(0, output.seek(0, os.SEEK_END) - 2**16))
    lines = [line.strip() for line in redact(output.read().decode(errors="replace")).splitlines() if line.strip()]
    errors = [line for line in lines if _EXCEPTION_LINE.match(line)] or lines
    return f"its last error is {errors[-1][:300]!r}" if errors else "without output"


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TERMINATE_S)
    try:
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/api/health")
            return connection.getresponse().status == HTTPStatus.OK
        return False
    finally:
        connection.close()


def _end_server(server: _Server) -> None:
    terminate(server.process)
    server.output.close()


def terminate(process: "subprocess.Popen[bytes]") -> None:
    """Send a server SIGTERM; kill it if it is still there after some seconds."""
    process.terminate()
    try:
        process.wait(_TERMINATE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
