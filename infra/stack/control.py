"""Start, watch and stop the stack."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from infra.stack import config as configuration
from infra.stack import ports, postgres, processes, ray_head, service, web
from infra.stack.config import Config
from infra.stack.errors import ServiceError
from infra.stack.service import Service
from infra.stack.services import SERVICES
from ssl_backdoor.errors import UserError

_READY_S = 120.0
_POLL_S = 0.2
_ENV_COMMAND = 'eval "$(.venv/bin/ssl-backdoor env)"'
_LOGIN_COMMAND = ".venv/bin/ssl-backdoor env --logins"


def say(text: str) -> None:
    """One line of progress; whole lines, also from threads."""
    with contextlib.suppress(BrokenPipeError):  # nobody reads on: no reason to stop halfway
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


@contextlib.contextmanager
def lock_stack(folder: Path) -> Iterator[None]:
    """Hold the stack's lock: no other `up` or `down` works on it meanwhile.

    Raises:
        UserError: somebody does.
    """
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another `up` or `down` works on {str(folder)!r} now: wait for it, then try again"
            ) from error
        yield


def up() -> int:
    """Start what does not run; on failure stop again what this call started."""
    started_s = time.monotonic()
    postgres.check_installed()
    folder = configuration.folder_of(os.environ)
    configuration.make_folder(folder)
    with lock_stack(folder):
        config = _load_or_create_config(folder)
        problem = _Starter(config).run()
    for each in SERVICES:
        say(f"{each.name:<10}{each.url(config)}")
    say(f"up after {time.monotonic() - started_s:.1f} s; to use it from a shell: {_ENV_COMMAND}")
    say(f"Prefect's and MLflow's pages ask for a login: {_LOGIN_COMMAND}")
    if problem is not None:
        raise ServiceError(f"the services run, but {problem}")
    return 0


def down() -> int:
    """Stop everything, last started first; data stay."""
    folder = configuration.folder_of(os.environ)
    if not folder.is_dir():
        say("nothing to stop")
        return 0
    with lock_stack(folder):
        config = configuration.load(folder)
        if config is not None:
            for each in reversed(SERVICES):
                _stop(config, each)
        processes.stop(folder, None, None, signal.SIGTERM, 0.0)
        if config is not None:
            ray_head.clear(config)
    say("down; data are kept in " + str(folder))
    return 0


def status() -> int:
    """A table of the services; 0 where all are well."""
    config = configuration.load(configuration.folder_of(os.environ))
    if config is None:
        say("the stack was never started here: make up")
        return 1
    with ThreadPoolExecutor(len(SERVICES)) as pool:
        states = list(pool.map(lambda each: _state(config, each), SERVICES))
    say(f"{'SERVICE':<10}{'STATE':<11}{'PID':>8}  {'URL':<24}{'MEMORY MiB':>10}  UPTIME")
    total_bytes = 0
    for each, state in zip(SERVICES, states, strict=True):
        process = service.running(config, each.name)
        rss_bytes = sum(one.rss_bytes for one in processes.members(config.folder, each.name, process))
        total_bytes += rss_bytes
        pid, age = ("-", "-") if process is None else (str(process.pid), _duration(processes.age_s(process)))
        say(f"{each.name:<10}{state:<11}{pid:>8}  {each.url(config):<24}{rss_bytes / 2**20:>10.0f}  {age}")
    say(f"{'':<55}{total_bytes / 2**20:>10.0f}")
    return 0 if all(state == "running" for state in states) else 1


def _load_or_create_config(folder: Path) -> Config:
    """The stack kept in ``folder`` with the ports of the environment, or a new one."""
    kept = configuration.load(folder)
    chosen = ports.choose(os.environ, kept.ports if kept else {})
    if kept is None:
        config = configuration.new(folder, chosen)
        configuration.save(config)
        return config
    config = configuration.new(folder, chosen, kept.secrets)
    if config != kept and any(service.running(kept, each.name) for each in SERVICES):
        what = "Ports" if chosen != kept.ports else "Passwords that this version asks for"
        raise UserError(f"{what} cannot change while services run: `make down` first, then `make up` again")
    configuration.save(config)  # restored into another home it still names the old one
    return config


def _state(config: Config, each: Service) -> str:
    if service.running(config, each.name) is None:
        return "stopped"
    return "running" if each.healthy(config) else "unhealthy"


def _stop(config: Config, each: Service) -> None:
    started_s = time.monotonic()
    leader = service.read_process(config, each.name)
    found = processes.members(config.folder, each.name, leader)
    killed = processes.stop(config.folder, each.name, leader, each.stop_signal, each.grace_s)
    service.forget(config, each.name)
    if found:
        how = f", {killed} killed" if killed else ""
        say(f"{each.name:<10}stopped {time.monotonic() - started_s:6.1f} s{how}")


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


class _Aborted(Exception):
    """Another service failed, or the user interrupted: this one is waited for no more."""


class _Starter:
    """One ``up``: services start side by side, each once those it needs are ready."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._abort = threading.Event()
        self._ready = {each.name: threading.Event() for each in SERVICES}
        self._started: list[Service] = []

    def run(self) -> str | None:
        """Start what does not run; then deploy the flows.

        Returns:
            What went wrong with the flows; None where nothing did.

        Raises:
            UserError: a port is taken.
            ServiceError: a service ended or was not ready in time.
        """
        for each in SERVICES:
            if service.running(self._config, each.name) is None:
                _stop(self._config, each)  # what an earlier leader left behind holds ports and the data folder
                self._check_ports(each)
        try:
            self._start_all()
            return web.deploy(self._config)
        except BaseException:
            self._give_up()
            for each in reversed(self._started):
                _stop(self._config, each)
            raise

    def _start_all(self) -> None:
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            futures = [pool.submit(self._start_or_explain, each) for each in SERVICES]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                self._give_up()  # leaving the block waits for the others
                raise

    def _give_up(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it behind
        self._abort.set()

    def _check_ports(self, each: Service) -> None:
        for name in each.ports:
            port = self._config.ports[name]
            if not ports.is_free(port):
                raise UserError(
                    f"port {port} of {each.name} is used by another program: set {ports.variable(name)} to a free one"
                )

    def _start_or_explain(self, each: Service) -> None:
        try:
            self._start(each)
        except OSError as error:
            raise ServiceError(f"{each.name} cannot be started: {error}") from error

    def _start(self, each: Service) -> None:
        for need in each.needs:
            while not self._ready[need].wait(_POLL_S):
                self._raise_if_aborted()
        self._raise_if_aborted()
        started_s = time.monotonic()
        child, log_bytes = None, 0
        if service.running(self._config, each.name) is None:
            each.prepare(self._config)
            log = self._config.log(each.name)
            log_bytes = log.stat().st_size if log.exists() else 0
            self._raise_if_aborted()
            self._started.append(each)
            child = service.start(each, self._config)
        self._wait_until_ready(each, child, log_bytes)
        each.finish(self._config)
        self._ready[each.name].set()
        how = "runs already" if child is None else f"ready {time.monotonic() - started_s:6.1f} s"
        say(f"{each.name:<10}{how}")

    def _wait_until_ready(self, each: Service, child: subprocess.Popen[bytes] | None, log_bytes: int) -> None:
        deadline = time.monotonic() + _READY_S
        while not each.healthy(self._config):
            self._raise_if_aborted()
            what = None
            if child is not None and child.poll() is not None:
                what = f"ended with code {child.returncode} while it was started"
            elif child is None and service.running(self._config, each.name) is None:
                what = "ended"
            elif time.monotonic() > deadline:
                what = f"runs and does not answer after {_READY_S:.0f} s"
            if what is not None:
                tail = service.last_lines(self._config, each.name, log_bytes)
                raise ServiceError(f"{each.name} {what}; the end of {self._config.log(each.name)}:\n{tail}")
            self._abort.wait(_POLL_S)

    def _raise_if_aborted(self) -> None:
        if self._abort.is_set():
            raise _Aborted
