"""Nothing that a shell has started outlives it: Prefect's server, Ray's processes.

Run as a program (``python endings.py PID MARK``) this waits for the shell ``PID``. However that ends, killed or out of
memory too, processes that carry ``MARK`` in their environment are ended after it. Linux only.
"""

import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MARK = "SSL_BACKDOOR_SHELL"
_ALONE_S = 3.0  # what ends with its parent is given so long
_ASKED_S = 6.0
_KILLED_S = 10.0
_POLL_S = 0.1
_guard: subprocess.Popen[bytes] | None = None


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
