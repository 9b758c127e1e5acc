"""Processes of the stack: who they are, what they use, how they end. Linux only.

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

import psutil

from infra.stack.errors import ServiceError
from tasks.process_identity import TICKS_PER_S, start_ticks

_MARK = "SSL_BACKDOOR_STACK"
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
    """What a process is and uses now."""

    process: Process
    parent: int
    session: int
    rss_bytes: int


def mark(folder: Path, service: str) -> dict[str, str]:
    """The variable that a service's processes inherit: one, since a title may be written over half an environment."""
    return {_MARK: f"{service}:{folder}"}


def facts(pid: int) -> Facts | None:
    """``pid`` now; None where there is no such process, or only its zombie."""
    try:
        ticks, process = start_ticks(pid), psutil.Process(pid)
        if ticks is None:
            return None
        return Facts(Process(pid, ticks), process.ppid(), os.getsid(pid), process.memory_info().rss)
    except (psutil.Error, ProcessLookupError):
        return None


def alive(process: Process) -> bool:
    """Whether this very process still runs."""
    now = facts(process.pid)
    return now is not None and now.process == process


def age_s(process: Process) -> float:
    """Seconds since ``process`` started."""
    return max(0.0, time.time() - psutil.boot_time() - process.start_ticks / TICKS_PER_S)


def snapshot() -> dict[int, Facts]:
    """Every process of the machine."""
    found = map(facts, psutil.pids())
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
    try:  # not psutil's, which stops at the first gap in an environment that is partly overwritten
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
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
        process = psutil.Process(pid)
        return process.name() == "postgres" and Path(process.cwd()) == folder / "postgres"
    except psutil.Error:
        return False


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
    raise ServiceError(f"processes of {service or 'the stack'} do not end, even killed: {pids}")


def _wait_gone(processes: Iterable[Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(alive(each) for each in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
