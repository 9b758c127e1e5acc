"""Orphaned flow runs: their process is gone without a final state, and Prefect would show them as running for ever.

Every flow labels its run with its process; the next flow, and `make up`, end this machine's runs without a process.
Run as a program (``python -m tasks.orphans POOL SECONDS``) this also ends runs that a worker of ``POOL`` had started
before the time ``SECONDS``, when another worker replaced it, and that had no time to label themselves.
"""

import os
import socket
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed, Scheduled

from tasks.process_identity import boot_id, start_ticks

_PROCESS = "ssl_backdoor.process"
_UNFINISHED = FlowRunFilter(
    state=FlowRunFilterState(
        type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    )
)
_PAGE = 200  # what one answer of the API holds
_GONE = "the process of this run was killed; start the same run again to resume from what is kept"


def register_flow_run(flow_run_id: UUID) -> None:
    """Label ``flow_run_id`` in Prefect with this process; end the runs whose process is gone."""
    with get_client(sync_client=True) as client:
        if (process := _process_identity(os.getpid())) is not None:
            client.update_flow_run_labels(flow_run_id, {_PROCESS: process})
        _end_orphans(client)


def _end_orphans(client: SyncPrefectClient) -> None:
    for run in client.read_flow_runs(flow_run_filter=_UNFINISHED, limit=_PAGE):
        noted = str(run.labels.get(_PROCESS, ""))
        host, _, rest = noted.partition("/")
        pid = rest.split("/")[1] if noted else ""
        if host == socket.gethostname() and _process_identity(int(pid)) != noted:
            _end(client, run.id)


def _end_unclaimed(client: SyncPrefectClient, pool: str, before: datetime) -> None:
    named = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    for run in client.read_flow_runs(flow_run_filter=_UNFINISHED, work_pool_filter=named, limit=_PAGE):
        if _PROCESS not in run.labels and run.state is not None and run.state.timestamp < before:
            _end(client, run.id)


def _end(client: SyncPrefectClient, run_id: UUID) -> None:
    """End a run unless it has ended, or been deleted, since it was listed."""
    with suppress(ObjectNotFound):
        if (state := _last_state(client.read_flow_run(run_id))) is not None:
            client.set_flow_run_state(run_id, state, force=True)


def _last_state(run: FlowRun) -> State[Any] | None:
    match run.state_type:
        case StateType.CANCELLING:
            return Cancelled(message=_GONE)
        case StateType.PENDING:
            return Scheduled(message="its worker was killed before the run began")  # the next worker takes it
        case StateType.RUNNING:
            return Crashed(message=_GONE)
        case _:
            return None


def _process_identity(pid: int) -> str | None:
    """Unique name of a process: host, boot, pid, start time. None if it is gone, or not on Linux."""
    try:
        ticks = start_ticks(pid)
        return None if ticks is None else f"{socket.gethostname()}/{boot_id()}/{pid}/{ticks}"
    except (psutil.Error, OSError):
        return None


def main(pool: str, before_s: float) -> None:
    """End orphaned runs, as `make up` does."""
    with get_client(sync_client=True) as client:
        _end_orphans(client)
        _end_unclaimed(client, pool, datetime.fromtimestamp(before_s, UTC))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
