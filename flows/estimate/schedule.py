"""Simulation of Ray's schedule: when many stages that share a few devices will be done."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class Job(NamedTuple):
    """One stage on one device."""

    seconds: float
    needs: tuple[int, ...] = ()
    """Indices of the jobs that must end before this one begins."""


def makespan_s(jobs: Sequence[Job], num_devices: int) -> float:
    """When the last of ``jobs`` ends: a free device takes the job that has been ready for longest.

    Of jobs that become ready at the same time the first in the list goes first.
    """
    num_pending = [len(set(job.needs)) for job in jobs]
    dependents: list[list[int]] = [[] for _ in jobs]
    for index, job in enumerate(jobs):
        for need in set(job.needs):
            dependents[need].append(index)
    ready = [(0.0, index) for index, count in enumerate(num_pending) if not count]
    ready_at_s, last_s = [0.0] * len(jobs), 0.0
    devices = [0.0] * min(num_devices, max(1, len(jobs)))  # when each is free
    while ready:
        ready_s, index = heapq.heappop(ready)
        ends_s = max(ready_s, heapq.heappop(devices)) + jobs[index].seconds
        heapq.heappush(devices, ends_s)
        last_s = max(last_s, ends_s)
        for other in dependents[index]:
            num_pending[other] -= 1
            ready_at_s[other] = max(ready_at_s[other], ends_s)
            if not num_pending[other]:
                heapq.heappush(ready, (ready_at_s[other], other))
    return last_s
