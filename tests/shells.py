"""`ssl-backdoor` as a process of its own, to be killed, and what it leaves."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

PROGRAM = Path(sys.executable).parent / "ssl-backdoor"


def begin(folder: Path, *arguments: str | Path, program: Path | None = None, **environment: str) -> subprocess.Popen:
    """Start a command with its home in ``folder``, in a process group of its own as at a terminal.

    ``program`` is a Python file to run in its place.
    """
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


def left_of(folder: Path) -> dict[int, str]:
    """Processes that a command of ``folder`` started, itself too, with their titles."""
    return marked(f"SSL_BACKDOOR_HOME={folder / 'home'}\0")


def marked(mark: str) -> dict[int, str]:
    """Processes whose environment holds ``mark``, with their titles."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    title = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = title.decode(errors="replace")
    return found
