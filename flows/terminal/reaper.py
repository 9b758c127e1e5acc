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
_HEARD = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM}  # what is handed on, and as what
_ALONE_S = 3.0  # what ends with its parent is given so long
_ASKED_S = 3.0  # Ray's agents do not hear SIGTERM
_KILLED_S = 10.0
_POLL_S = 0.1


def run_and_reap_children(command: Callable[[], None]) -> None:
    """Run ``command`` where no signal to this process's group comes; this process hands it on those that end it.

    Ctrl-C at a terminal and `timeout` signal a whole group: Prefect's server and Ray would be gone before the flow.
    However the command or this process ends, killed or out of memory too, all that the command started is ended after
    it. Where the system is not Linux, ``command`` runs here and its own end is all there is.
    """
    if sys.platform != "linux":
        command()
        return
    terminal, (told, tell) = os.getpid(), os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)  # until there is somebody to hand them on to
    watch = os.fork()
    if watch == 0:
        os.close(told)
        _begin_watched(command, terminal, tell)
        return
    os.close(tell)
    _hand_on(_HEARD, watch)
    with open(told) as line:
        code = line.read()
    # Without a word the watching one was killed, and the shell with it.
    ended = int(code) if code else os.waitstatus_to_exitcode(os.waitpid(watch, 0)[1])
    sys.exit(ended if ended >= 0 else 128 - ended)


def _hand_on(heard: dict[signal.Signals, signal.Signals], process: int) -> None:
    def hand(number: int, _: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(process, heard[signal.Signals(number)])

    for number in heard:
        signal.signal(number, hand)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)


def _begin_watched(command: Callable[[], None], terminal: int, tell: int) -> None:
    """Begin the shell, in a process of its own, from which this returns; the present one watches it to its end."""
    os.setsid()
    control = ctypes.CDLL(None).prctl
    control(_PR_SET_CHILD_SUBREAPER, 1)
    watch = os.getpid()
    shell = os.fork()
    if shell != 0:
        try:
            control(_PR_SET_PDEATHSIG, signal.SIGHUP)
            _watch(shell, terminal, tell)
        finally:
            os._exit(0)
    os.close(tell)
    os.setsid()
    control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != watch:
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
    command()


def _watch(shell: int, terminal: int, tell: int) -> None:
    with open(os.devnull, "r+") as nothing:
        for stream in range(3):  # whoever reads what the shell says shall not wait for this process
            os.dup2(nothing.fileno(), stream)
    _hand_on({**_HEARD, signal.SIGHUP: signal.SIGKILL}, shell)  # SIGHUP: the one that the terminal knows has ended
    if os.getppid() != terminal:
        os.kill(shell, signal.SIGKILL)
    ended = status = 0
    while ended != shell:
        ended, status = os.waitpid(-1, 0)
    for number in (signal.SIGHUP, *_HEARD):
        signal.signal(number, signal.SIG_IGN)
    with suppress(BrokenPipeError), open(tell, "w") as line:
        line.write(str(os.waitstatus_to_exitcode(status)))
    _end_what_is_left()


def _end_what_is_left() -> None:
    for number, within_s in ((0, _ALONE_S), (signal.SIGTERM, _ASKED_S), (signal.SIGKILL, _KILLED_S)):
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
    """Whether any is left, once those that have ended are buried: what has no parent any more is a child of this."""
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
