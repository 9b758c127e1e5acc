"""The Prefect server of a flow that nothing points at one: started at once, in a process of its own, with a secret.

Prefect starts one by itself where it finds none. That one asks nobody for a password and answers every web page; and
Prefect imports the whole server into this process first, which is half of what a run costs that reuses everything.
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

from ssl_backdoor.errors import TrainingError, UserError, printed
from tasks.logs import redacted

_PATIENCE_S = 180.0
_ENDING_S = 5.0
_POLL_S = 0.05
_PROGRAM = ("-m", "tasks.prefect_server", "--socket")
_ON_ITS_OWN = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PYTHONSAFEPATH": "1",
}
"""What Prefect gives its own: no pages, no schedules. Its errors go to a file, of which nothing stays.

Python does not look for modules in the working folder, where anybody's data may lie.
"""
_RAISED = re.compile(r"[\w.]+(?:Error|Exception)\b")
"""How the line of a traceback begins that names the exception."""


class _Server(NamedTuple):
    process: "subprocess.Popen[bytes]"
    port: int
    secret: str
    said: IO[bytes]


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
    """Flows in the block tell this shell's server what they do, which is waited for, unless Prefect is given another.

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
        begin()
    if named is not None:
        _check_answers(named)
    if named is not None or (server := _server) is None:
        yield
        return
    _await(server)
    own = {
        PREFECT_API_URL: address(),
        PREFECT_API_AUTH_STRING: server.secret,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # nobody there waits for them, and a flow lasts up to a second longer
    }
    with temporary_settings(own):
        yield


def _check_answers(api: str) -> None:
    """Prefect would say it in sixty lines."""
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
        return
    except httpx.HTTPStatusError as error:
        if error.response.status_code not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise
        what, cure = "wants another password", "set PREFECT_API_AUTH_STRING (`ssl-backdoor env` has that of `make up`)"
    except (RuntimeError, httpx.HTTPError):
        what, cure = "does not answer", "start it (`make up`), or mend or unset PREFECT_API_URL"
    raise UserError(f"the Prefect server at {printed(api)} {what}: {cure}") from None


def _start() -> _Server:
    said = tempfile.TemporaryFile()  # noqa: SIM115  written to as long as the server runs; _end closes it
    secret = f"shell:{secrets.token_hex(32)}"
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        process = subprocess.Popen(
            [sys.executable, *_PROGRAM, str(bound.fileno())],
            env={**os.environ, **_ON_ITS_OWN, "PREFECT_SERVER_API_AUTH_STRING": secret},
            pass_fds=[bound.fileno()],
            stdout=said,
            stderr=said,
        )
        server = _Server(process, bound.getsockname()[1], secret, said)
    atexit.register(_end, server)  # after Prefect's own threads have told it the last they know
    return server


def _await(server: _Server) -> None:
    """Return once ``server`` answers."""
    deadline = time.monotonic() + _PATIENCE_S
    while not _answers(server.port):
        code = server.process.poll()
        if code is not None or time.monotonic() > deadline:
            what = "does not answer" if code is None else f"ended with code {code}"
            raise TrainingError(
                f"the Prefect server of this shell {what}, {last_words(server.said)}: look at the disk of "
                "PREFECT_HOME, or point PREFECT_API_URL at another (`make up`)"
            )
        time.sleep(_POLL_S)


def last_words(said: IO[bytes]) -> str:
    """The last error that the server told, or its last line."""
    said.seek(max(0, said.seek(0, os.SEEK_END) - 2**16))
    lines = [line.strip() for line in redacted(said.read().decode(errors="replace")).splitlines() if line.strip()]
    told = [line for line in lines if _RAISED.match(line)] or lines
    return f"its last words are {told[-1][:300]!r}" if told else "and said nothing"


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ENDING_S)
    try:
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/api/health")
            return connection.getresponse().status == HTTPStatus.OK
        return False
    finally:
        connection.close()


def _end(server: _Server) -> None:
    end(server.process)
    server.said.close()


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ask a server to end; kill it where it does not within seconds."""
    process.terminate()
    try:
        process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
