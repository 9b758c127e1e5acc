"""`ssl-backdoor` as a process of its own, to be killed, and what it leaves."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.support.prefect_home import give_database

PROGRAM = Path(sys.executable).parent / "ssl-backdoor"


def begin(folder: Path, *arguments: str | Path, program: Path | None = None, **environment: str) -> subprocess.Popen:
    """Start a command with its home in ``folder``, in a process group of its own as at a terminal.

    The home has Prefect's database. ``program`` is a Python file to run in its place.
    """
    give_database(folder / "home")
    command = [PROGRAM] if program is None else [sys.executable, program]
    return subprocess.Popen(
        [*map(str, command), *map(str, arguments)],
        env={**os.environ, "SSL_BACKDOOR_HOME": str(folder / "home"), **environment},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_as_from_a_terminal,
        process_group=0,
    )


def _as_from_a_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background hands on an ignored one


_sessions: dict[Path, set[int]] = {}


def left_of(folder: Path) -> dict[int, str]:
    """Processes that a command of ``folder`` started, itself too, with their titles.

    Also those that share a session with one seen here before: some of Ray's write their titles over the environment
    that they would be known by.
    """
    mark = f"SSL_BACKDOOR_HOME={folder / 'home'}\0"
    sessions = _sessions.setdefault(folder, set())
    for pid in marked(mark):
        with suppress(OSError):
            sessions.add(os.getsid(pid))
    sessions.discard(os.getsid(0))
    return _processes(lambda entry: mark.encode() in _environment(entry) or os.getsid(int(entry.name)) in sessions)


def nothing_left_of(folder: Path, within_s: float = 180) -> None:
    """Wait until no process that a command of ``folder`` started is there; RuntimeError naming those that stay."""
    deadline = time.monotonic() + within_s
    while left := left_of(folder):
        if time.monotonic() > deadline:
            titles = {pid: " ".join(title.split()) for pid, title in left.items()}
            raise RuntimeError(f"{within_s:.0f} s after a command's end these are left: {titles}")
        time.sleep(0.1)


def marked(mark: str) -> dict[int, str]:
    """Processes whose environment holds ``mark``, with their titles."""
    return _processes(lambda entry: mark.encode() in _environment(entry))


def _environment(process: Path) -> bytes:
    return (process / "environ").read_bytes()


def _processes(is_asked: Callable[[Path], bool]) -> dict[int, str]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if is_asked(entry):
                    title = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = title.decode(errors="replace")
    return found
