"""What tells a process from every other, also from a later one with its pid and from one of another boot. On Linux."""

import os
from pathlib import Path

import psutil

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def boot_id() -> str:
    """This boot. psutil knows its time alone, which changes when the clock is set.

    Raises:
        OSError: this is not Linux.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When ``pid`` started, in clock ticks since boot, however the clock is set; None where there is only its zombie.

    Raises:
        psutil.Error: there is no such process, or it may not be looked at.
    """
    process = psutil.Process(pid)  # a new one each time, since ``create_time`` is cached and follows the clock
    # Threads may outlive the first and hold the process's files.
    if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) and process.num_threads() <= 1:
        return None
    return round((process.create_time() - psutil.boot_time()) * TICKS_PER_S)
