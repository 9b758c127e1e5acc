"""Processes of the stack: who they are, what they use, how they end. Linux only: everything is read from /proc.

A process is known by its pid and its start time, so a pid that the system gave to somebody else is never signalled.
A service's processes are its recorded leader, whatever carries the stack's mark in its environment, and the descendants
of all these. Some write a title over their environment: Ray's agents, which stay in the leader's session, and
PostgreSQL's children, which sit in its data folder.
"""

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infra.stack.errors import ServiceError

_MARK = "SSL_BACKDOOR_STACK"
_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ENDED = ("Z", "X")
_POLL_S = 0.05
_AFTER_LEADER_S = 3.0
_KILL_ROUNDS = 5


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for another: start time in clock ticks since boot."""

    pid: int
    start_ticks: int


@dataclass(frozen=True)
class Facts:
    """What /proc says of a process now."""

    process: Process
    parent: int
    session: int
    rss_bytes: int


def mark(folder: Path, service: str) -> dict[str, str]:
    """The variable that a service's processes inherit: one, since a title may be written over half an environment."""
    return {_MARK: f"{service}:{folder}"}


def boot_id() -> str:
    """Start times are counted from this boot."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def facts(pid: int) -> Facts | None:
    """``pid`` now; None where there is no such process, or only its zombie."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    if fields[0] in _ENDED and int(fields[17]) <= 1:  # with more, threads outlive the first and hold its files
        return None
    parent, session, start, rss_pages = (int(fields[index]) for index in (1, 3, 19, 21))
    return Facts(Process(pid, start), parent, session, rss_pages * _PAGE_BYTES)


def alive(process: Process) -> bool:
    """Whether this very process still runs."""
    now = facts(process.pid)
    return now is not None and now.process == process


def age_s(process: Process) -> float:
    """Seconds since ``process`` started."""
    since_boot = float((_PROC / "uptime").read_text().split()[0])
    return max(0.0, since_boot - process.start_ticks / _TICKS_PER_S)


def snapshot() -> dict[int, Facts]:
    """Every process of the machine."""
    found = (facts(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdecimal())
    return {each.process.pid: each for each in found if each is not None}


def members(folder: Path, service: str | None, leader: Process | None = None) -> list[Facts]:
    """Processes of ``service`` (of the whole stack where None). ``leader``, as recorded, may be gone already."""
    everyone = snapshot()
    session = None  # unless its number belongs to somebody else now
    if leader is not None and (leader.pid not in everyone or everyone[leader.pid].process == leader):
        session = leader.pid
    chosen = {pid for pid, each in everyone.items() if _belongs(each, folder, service, session)}
    children: dict[int, list[int]] = {}
    for each in everyone.values():
        children.setdefault(each.parent, []).append(each.process.pid)
    waiting = list(chosen)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in chosen:
                chosen.add(child)
                waiting.append(child)
    return [everyone[pid] for pid in sorted(chosen)]


def _belongs(each: Facts, folder: Path, service: str | None, session: int | None) -> bool:
    pid = each.process.pid
    if pid == session:
        return True
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    for entry in environment:
        name, _, value = entry.partition(b"=")
        owner, _, place = value.partition(b":")
        if name == _MARK.encode() and place == os.fsencode(folder):
            return service is None or owner == service.encode()
    if b"=" in environment[0]:
        return False  # nothing is written over its environment, and that is not ours
    return each.session == session or (service in (None, "postgres") and _is_postgres_of(pid, folder))


def postgres_runs_in(folder: Path) -> bool:
    """Whether any PostgreSQL, whoever started it, works on the data folder of this stack."""
    return any(_is_postgres_of(pid, folder) for pid in snapshot())


def _is_postgres_of(pid: int, folder: Path) -> bool:
    try:
        name = (_PROC / str(pid) / "comm").read_text().strip()
        place = (_PROC / str(pid) / "cwd").readlink()
    except OSError:
        return False
    return name == "postgres" and place == folder / "postgres"


def send(process: Process, number: signal.Signals) -> None:
    """Signal this very process; nothing happens where it is gone, whoever has its pid now."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if alive(process):  # the handle pins the process: no other can take its place between here and the signal
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def stop(folder: Path, service: str | None, leader: Process | None, number: signal.Signals, grace_s: float) -> int:
    """End every process of ``service``: the leader is asked first, then the rest, then none is asked.

    Returns:
        How many processes had to be killed.

    Raises:
        ServiceError: some outlive even that.
    """
    known = {each.process for each in members(folder, service, leader)}
    if leader is not None and leader in known:
        send(leader, number)
        _wait_gone(known, grace_s)
    known |= {each.process for each in members(folder, service, leader)}
    for process in known:
        send(process, signal.SIGTERM)
    _wait_gone(known, _AFTER_LEADER_S)
    killed: set[Process] = set()
    left: set[Process] = set()
    for _ in range(_KILL_ROUNDS):
        left = {each for each in known if alive(each)} | {each.process for each in members(folder, service, leader)}
        if not left:
            return len(killed)
        for process in left:
            send(process, signal.SIGKILL)
        killed |= left
        _wait_gone(left, _AFTER_LEADER_S)
    pids = ", ".join(str(each.pid) for each in sorted(left, key=lambda each: each.pid))
    raise ServiceError(f"Processes of {service or 'the stack'} do not end, even killed: {pids}.")


def _wait_gone(processes: Iterable[Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(alive(each) for each in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
