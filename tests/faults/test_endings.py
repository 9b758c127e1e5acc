"""Whichever of a shell's three processes ends, and however, nothing that the shell started outlives it."""

import os
import signal
import subprocess
import sys

import pytest

from infra.stack.processes import facts
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a shell is one process")
LEFT = """
import os, signal, sys, time
if os.fork():
    sys.exit()
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""
SHELL = f"""
import os, subprocess, sys, time
from flows.terminal.reaper import run_and_reap_children

def command():
    how, left = sys.argv[1:]
    begun = subprocess.Popen(  # whose child has no environment, no group and no parent to be known by
        [sys.executable, "-c", {LEFT!r}, left], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={{}},
        start_new_session=True,
    )
    print(os.getppid(), os.getpid(), begun.stdout.readline(), flush=True)
    time.sleep(600 if how == "waits" else 0)
    sys.exit(7)

run_and_reap_children(command)
"""


def begun(how: str, left: str = "hears") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SHELL, how, left],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def is_running(pid: int) -> bool:
    return facts(pid) is not None


@pytest.mark.parametrize("which", ["terminal", "watch", "shell", "nobody"])
def test_nothing_outlives_a_shell_whichever_of_its_processes_is_killed(which):
    with begun("ends" if which == "nobody" else "waits", "deaf" if which == "terminal" else "hears") as terminal:
        watch, shell, left = map(int, terminal.stdout.readline().split())
        if which != "nobody":
            os.kill({"terminal": terminal.pid, "watch": watch, "shell": shell}[which], signal.SIGKILL)
        terminal.communicate(timeout=60)
    code = {"terminal": -signal.SIGKILL, "nobody": 7}.get(which, 128 + signal.SIGKILL)
    assert terminal.returncode == code
    if which == "watch":  # then there is nobody to end what the shell started
        wait_until(lambda: not is_running(shell), timeout_s=60, what="the shell's end")
        os.kill(left, signal.SIGKILL)
        return
    for pid in (watch, shell, left):
        wait_until(lambda pid=pid: not is_running(pid), timeout_s=120, what=f"the end of {pid}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_group_is_handed_on_to_the_shell_once(number, code):
    with begun("waits") as terminal:
        watch, shell, left = map(int, terminal.stdout.readline().split())
        os.killpg(terminal.pid, number)
        err = terminal.communicate(timeout=60)[1]
    assert terminal.returncode == code
    assert err.count("KeyboardInterrupt") == (number == signal.SIGINT)
    for pid in (watch, shell, left):
        wait_until(lambda pid=pid: not is_running(pid), timeout_s=120, what=f"the end of {pid}")
