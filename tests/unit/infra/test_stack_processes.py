"""Only what the stack started is signalled, and all of it: with real, small processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack import config as configuration
from infra.stack import ports, processes, service
from infra.stack.processes import Process
from ssl_backdoor.errors import UserError
from tasks.process_identity import boot_id

SLEEP = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
PARENT = (
    "import subprocess, sys, time;"
    "sleep = [sys.executable, '-c', 'import time; time.sleep(60)'];"
    "child = subprocess.Popen(sleep, start_new_session=True, stdout=subprocess.DEVNULL, env={{{env}}});"
    "print(child.pid, flush=True); time.sleep(60)"
)


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen]]:
    started: list[subprocess.Popen] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def launch(children: list[subprocess.Popen], script: str, folder: Path, name: str | None = "ray") -> subprocess.Popen:
    mark = {} if name is None else processes.mark(folder, name)
    child = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, **mark}, stdout=subprocess.PIPE, start_new_session=True
    )
    children.append(child)
    return child


def known(pid: int) -> Process:
    found = processes.facts(pid)
    assert found is not None
    return found.process


def pids(folder: Path, name: str | None, leader: Process | None = None) -> set[int]:
    return {each.process.pid for each in processes.members(folder, name, leader)}


def test_a_reused_pid_is_never_signalled(children, tmp_path):
    bystander = launch(children, SLEEP, tmp_path, None)
    now = known(bystander.pid)
    earlier = Process(now.pid, now.start_ticks - 1)
    assert processes.alive(now)
    assert not processes.alive(earlier)
    processes.send(earlier, signal.SIGKILL)
    assert processes.stop(tmp_path, "ray", earlier, signal.SIGKILL, 0.1) == 0
    assert bystander.poll() is None


def test_a_record_of_another_boot_names_nobody(children, tmp_path):
    folder = tmp_path / "stack"
    configuration.make_folder(folder)
    config = configuration.new(folder, ports.DEFAULTS)
    now = known(launch(children, SLEEP, folder).pid)
    record = '{"pid": %d, "start_ticks": %d, "boot_id": "%s", "started_unix_s": 0}'
    path = folder / "run" / "ray.json"
    path.write_text(record % (now.pid, now.start_ticks, boot_id()))
    assert service.running(config, "ray") == now
    path.write_text(record % (now.pid, now.start_ticks, "another"))
    assert service.running(config, "ray") is None
    path.write_text("half a rec")
    assert service.running(config, "ray") is None


def test_members_are_the_marked_of_this_stack_and_service_and_their_descendants(children, tmp_path):
    parent = launch(children, PARENT.format(env=""), tmp_path)
    grandchild = int(parent.stdout.readline())
    worker = launch(children, SLEEP, tmp_path, "worker")
    launch(children, SLEEP, tmp_path / "other")
    launch(children, SLEEP, tmp_path, None)
    wait_for(lambda: pids(tmp_path, None) == {parent.pid, grandchild, worker.pid})
    assert pids(tmp_path, "ray") == {parent.pid, grandchild}
    assert pids(tmp_path, "worker") == {worker.pid}
    assert processes.stop(tmp_path, None, None, signal.SIGTERM, 0.0) == 0
    assert pids(tmp_path, None) == set()


def test_an_orphan_is_found_by_its_mark_and_ended(children, tmp_path):
    (item,) = processes.mark(tmp_path, "ray").items()
    parent = launch(children, PARENT.format(env="{!r}: {!r}".format(*item)), tmp_path)
    orphan = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_for(lambda: pids(tmp_path, "ray") == {orphan})
    assert processes.stop(tmp_path, "ray", None, signal.SIGTERM, 1.0) == 0
    assert pids(tmp_path, "ray") == set()


def test_whoever_ignores_the_request_is_killed(children, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_AFTER_LEADER_S", 0.2)
    stubborn = launch(children, STUBBORN, tmp_path)
    assert stubborn.stdout.readline() == b"on\n"
    assert processes.stop(tmp_path, "ray", known(stubborn.pid), signal.SIGTERM, 0.2) == 1
    assert stubborn.wait() == -signal.SIGKILL


def test_age_and_memory_of_a_process():
    me = processes.facts(os.getpid())
    assert me is not None
    assert me.rss_bytes > 2**20
    assert me.session == os.getsid(0)
    assert 0 < processes.age_s(me.process) < 24 * 3600


def test_one_up_or_down_at_a_time(tmp_path):
    from infra.stack.control import lock_stack

    with lock_stack(tmp_path), pytest.raises(UserError, match="works on"), lock_stack(tmp_path):
        pass
    with lock_stack(tmp_path):
        pass


def wait_for(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
