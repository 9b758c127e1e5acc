"""How a shell ends: it alone hears that it shall, and nothing that it started outlives it: Prefect's server, Ray.

Run as a program (``python endings.py PID MARK``) this waits for the shell ``PID``. However that ends, killed or out of
memory too, processes that carry ``MARK`` in their environment are ended after it. Linux only.
"""

import ctypes
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_MARK = "SSL_BACKDOOR_SHELL"
_ALONE_S = 3.0  # what ends with its parent is given so long
_ASKED_S = 6.0
_KILLED_S = 10.0
_POLL_S = 0.1
_guard: subprocess.Popen[bytes] | None = None


def in_a_session_of_its_own(command: Callable[[], None]) -> None:
    """Run ``command`` where no signal to this process's group comes; this process hands it on those that end it.

    Ctrl-C at a terminal and `timeout` signal a whole group: Prefect's server and Ray would be gone before the flow.
    """
    child = os.fork() if hasattr(os, "pidfd_open") else None
    if child is None:
        command()
    elif child == 0:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        command()
    else:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(child, number))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.exit(code if code >= 0 else 128 - code)


def leave_nothing() -> None:
    """What this process starts from now on ends with it, even where it is killed. Idempotent."""
    global _guard
    if not hasattr(os, "pidfd_open") or (_guard is not None and _guard.poll() is None):
        return
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    os.environ.pop(_MARK, None)
    _guard = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), mark],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the shell
    )
    os.environ[_MARK] = mark


def _marked(mark: str) -> Iterator[int]:
    """Processes that carry ``mark``."""
    entry = f"{_MARK}={mark}".encode()
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            with suppress(OSError):  # it has ended meanwhile, or is somebody else's
                if entry in (place / "environ").read_bytes():
                    yield int(place.name)


def _gone(mark: str, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while any(_marked(mark)):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _watch(shell: int, mark: str) -> None:
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(shell)
        if os.getppid() == shell:  # else it has ended already, and its number may be another's
            select.select([handle], [], [])
    if _gone(mark, _ALONE_S):
        return
    for number, within_s in ((signal.SIGTERM, _ASKED_S), (signal.SIGKILL, _KILLED_S)):
        for process in _marked(mark):
            with suppress(OSError):
                os.kill(process, number)
        if _gone(mark, within_s):
            return


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2])
