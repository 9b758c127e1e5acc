"""Stages done side by side in processes of their own until a deadline; what is not done then is left out, and said."""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ssl_backdoor.errors import SslBackdoorError, summarize_error
from ssl_backdoor.specs import Resources
from ssl_backdoor.stages import StageCall, run_stage
from ssl_backdoor.store import ArtifactRef, open_store

MAX_WORKERS = 8


class Job(NamedTuple):
    """Stages one after the other, of which each may take what those before it leave."""

    name: str
    calls: tuple[StageCall, ...]


class Done(NamedTuple):
    """What came of a job."""

    ref: ArtifactRef | None
    """Of its last stage."""
    seconds: float
    """Of the clock, reused stages not counted."""
    failure: str = ""


def perform(
    jobs: Sequence[Job], store: str, deadline: float, on_done: Callable[[str, int, int], None]
) -> Mapping[str, Done]:
    """Do ``jobs``, the first ones first, until ``time.monotonic()`` is ``deadline``.

    Returns:
        By name what was done in time. Processes that work on something else then are ended; stages that were finished
        stay in the store at ``store``.
    """
    done: dict[str, Done] = {}
    workers = max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)), len(jobs)))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        waiting = [(job.name, pool.apply_async(_do, (job.calls, store))) for job in jobs]
        for number, (name, result) in enumerate(waiting, 1):
            try:
                done[name] = result.get(max(0.0, deadline - time.monotonic()))
            except multiprocessing.TimeoutError:
                continue
            on_done(name, number, len(jobs))
    return done


def _do(calls: Sequence[StageCall], uri: str) -> Done:
    started, store, last = time.monotonic(), open_store(uri), None
    try:
        for call in calls:
            last = run_stage(call, store, Resources(threads=1))
    except SslBackdoorError as error:
        return Done(None, time.monotonic() - started, summarize_error(error))
    return Done(last.ref if last else None, time.monotonic() - started)
