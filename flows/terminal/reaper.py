"""Signal handling and clean-up of the process tree for the command line, by a Linux subreaper.

Three processes: the one that the terminal knows; a watcher, which is the subreaper; and the command itself, a child of
the watcher. The kernel makes the watcher the parent of every orphan that the command leaves (Prefect's server, Ray), so
that none escapes, even where it wrote a title over its environment as Ray's agents do.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_FORWARDED = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM}  # signals that are forwarded, and as what
_GRACE_S = 3.0  # for processes that end with their parent
_TERMINATE_S = 3.0  # Ray's agents ignore SIGTERM
_KILL_S = 10.0
_POLL_S = 0.1


def run_and_reap_children(command: Callable[[], None]) -> None:
    """Run ``command`` outside this process's group; this process forwards to it the signals that end it.

    Ctrl-C at a terminal and `timeout` signal a whole group: Prefect's server and Ray would be gone before the flow.
    However the command or this process ends, killed or out of memory too, every process that it started is ended after
    it. Where the system is not Linux, ``command`` runs here and its own end is all there is.
    """
    if sys.platform != "linux":
        command()
        return
    terminal, (status_read, status_write) = os.getpid(), os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)  # until there is a process to forward them to
    watch = os.fork()
    if watch == 0:
        os.close(status_read)
        _fork_supervised(command, terminal, status_write)
        return
    os.close(status_write)
    _forward_signals(_FORWARDED, watch)
    with open(status_read) as line:
        code = line.read()
    # Without an exit code the supervisor was killed, and the shell with it.
    ended = int(code) if code else os.waitstatus_to_exitcode(os.waitpid(watch, 0)[1])
    sys.exit(ended if ended >= 0 else 128 - ended)


def _forward_signals(heard: dict[signal.Signals, signal.Signals], process: int) -> None:
    def hand(number: int, _: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(process, heard[signal.Signals(number)])

    for number in heard:
        signal.signal(number, hand)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)


def _fork_supervised(command: Callable[[], None], terminal: int, status_write: int) -> None:
    """Fork the shell, in which this returns; the present process supervises it to its end."""
    os.setsid()
    control = ctypes.CDLL(None).prctl
    control(_PR_SET_CHILD_SUBREAPER, 1)
    watch = os.getpid()
    shell = os.fork()
    if shell != 0:
        try:
            control(_PR_SET_PDEATHSIG, signal.SIGHUP)
            _supervise(shell, terminal, status_write)
        finally:
            os._exit(0)
    os.close(status_write)
    os.setsid()
    control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != watch:
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    command()


def _supervise(shell: int, terminal: int, status_write: int) -> None:
    with open(os.devnull, "r+") as nothing:
        for stream in range(3):  # a reader of the shell's output must not wait for this process
            os.dup2(nothing.fileno(), stream)
    _forward_signals({**_FORWARDED, signal.SIGHUP: signal.SIGKILL}, shell)  # SIGHUP: the terminal's process has ended
    if os.getppid() != terminal:
        os.kill(shell, signal.SIGKILL)
    ended = status = 0
    while ended != shell:
        ended, status = os.waitpid(-1, 0)
    for number in (signal.SIGHUP, *_FORWARDED):
        signal.signal(number, signal.SIG_IGN)
    with suppress(BrokenPipeError), open(status_write, "w") as line:
        line.write(str(os.waitstatus_to_exitcode(status)))
    _end_descendants()


def _end_descendants() -> None:
    for number, within_s in ((0, _GRACE_S), (signal.SIGTERM, _TERMINATE_S), (signal.SIGKILL, _KILL_S)):
        deadline = time.monotonic() + within_s
        asked: set[int] = set()
        while time.monotonic() < deadline:
            if not _has_children():
                return
            new = descendants(os.getpid()) - asked if number else set()
            asked |= new
            for process in new:
                with suppress(OSError):
                    os.kill(process, number)
            time.sleep(_POLL_S)


def _has_children() -> bool:
    """Whether any child is left, once ended ones are reaped; orphans are children of this process."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def descendants(pid: int) -> set[int]:
    """All processes below ``pid``, now."""
    import psutil  # not at the start of every command

    try:
        return {process.pid for process in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()
