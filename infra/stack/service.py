"""What a service is, how one is started, and the record of the process it runs as."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.stack.config import ROOT, TELEMETRY_OFF, Config, write_private
from infra.stack.processes import Process, alive, facts, mark
from ssl_backdoor.errors import UserError
from tasks.loopback import around_proxies
from tasks.process_identity import boot_id

# A setting of the shell that runs `up` must not bend a server: what a server needs, it is given.
_DROPPED = ("PREFECT_", "MLFLOW_", "RAY_", "AWS_", "WEED_", "S3_", "PG", "SSL_BACKDOOR_")
_KEPT = ("SSL_BACKDOOR_CACHE", "SSL_BACKDOOR_LOG")


def _nothing(_: Config) -> None:
    pass


@dataclass(frozen=True)
class Service:
    """One server of the stack. ``prepare`` runs before its start, ``finish`` once it answers; both can be repeated."""

    name: str
    ports: Sequence[str]
    needs: Sequence[str]
    url: Callable[[Config], str]
    command: Callable[[Config], list[str]]
    environment: Callable[[Config], Mapping[str, str]]
    healthy: Callable[[Config], bool]
    prepare: Callable[[Config], None] = _nothing
    finish: Callable[[Config], None] = _nothing
    cwd: Callable[[Config], Path] = lambda config: config.folder
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 15.0


def program(name: str) -> str:
    """A program installed beside this Python.

    Raises:
        UserError: it is not.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise UserError(f"the program {name} is not installed beside {sys.executable}: make setup")
    return found


def environment_for(config: Config, service: str, own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: the shell's without other servers' settings, ``own``, and the stack's mark."""
    kept = {n: v for n, v in os.environ.items() if n in _KEPT or not n.startswith(_DROPPED)}
    return {
        **kept,
        **around_proxies(kept),
        "PYTHONUNBUFFERED": "1",
        **TELEMETRY_OFF,
        **own,
        **mark(config.folder, service),
    }


def start(service: Service, config: Config) -> subprocess.Popen[bytes]:
    """Start ``service`` in a session of its own and keep a record of it."""
    with config.log(service.name).open("ab") as log:
        child = subprocess.Popen(
            service.command(config),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=service.cwd(config),
            env=environment_for(config, service.name, service.environment(config)),
            start_new_session=True,
        )
    found = facts(child.pid)
    if found is not None:
        record = {"pid": child.pid, "start_ticks": found.process.start_ticks, "boot_id": boot_id()}
        write_private(_record(config, service.name), json.dumps({**record, "started_unix_s": time.time()}) + "\n")
    return child


def read_process(config: Config, name: str) -> Process | None:
    """The process that ``name`` was started as since the machine's boot, whether it still runs or not."""
    record = read_record(config, name)
    if record is None or record.get("boot_id") != boot_id():
        return None
    return Process(int(record["pid"]), int(record["start_ticks"]))


def running(config: Config, name: str) -> Process | None:
    """The process that ``name`` was started as, if it still runs."""
    process = read_process(config, name)
    return process if process is not None and alive(process) else None


def read_record(config: Config, name: str) -> dict[str, float | int | str] | None:
    """What ``start`` wrote of ``name``; None where it never ran, or was stopped."""
    try:
        kept = json.loads(_record(config, name).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return kept if isinstance(kept, dict) and {"pid", "start_ticks"} <= kept.keys() else None


def forget(config: Config, name: str) -> None:
    """Drop the record of a stopped service."""
    _record(config, name).unlink(missing_ok=True)


def run_tool(command: Sequence[str], config: Config, own: Mapping[str, str], timeout_s: float) -> tuple[int, str]:
    """Run a short command from the repository's root as a member of the stack.

    Returns:
        Its exit code (124: it took too long) and what it wrote.
    """
    environment = environment_for(config, "tool", own)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return 124, f"{Path(command[0]).name} did not end within {timeout_s:.0f} s"
    return done.returncode, config.redact(done.stdout.decode(errors="replace"))


def last_lines(config: Config, name: str, since_bytes: int = 0, count: int = 6) -> str:
    """The end of a service's log, without secrets; from ``since_bytes`` on, where its last start began."""
    try:
        text = config.log(name).read_bytes()[since_bytes:].decode(errors="replace")
    except FileNotFoundError:
        text = ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return config.redact("\n".join(f"    {line}" for line in lines[-count:])) or "    (it is empty)"


def _record(config: Config, name: str) -> Path:
    return config.folder / "run" / f"{name}.json"
