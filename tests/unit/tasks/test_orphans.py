"""Runs whose process is gone, on a page that changes meanwhile."""

import os
import socket
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from tasks import orphans

GONE = f"{socket.gethostname()}/boot/{2**22 + 1}/1"


class Page:
    """Prefect's server: ``listed`` are the states of runs as they were listed, ``now`` as they are; None: deleted."""

    def __init__(self, process: str, listed: StateType, now: StateType | None) -> None:
        self._run = SimpleNamespace(id=uuid4(), labels={"ssl_backdoor.process": process}, state_type=listed)
        self._now = now
        self.ended: list[str] = []

    def read_flow_runs(self, **_: object) -> list[SimpleNamespace]:
        return [self._run]

    def read_flow_run(self, run_id: UUID) -> SimpleNamespace:
        if self._now is None:
            raise ObjectNotFound(Exception("deleted"))
        return SimpleNamespace(id=run_id, state_type=self._now)

    def set_flow_run_state(self, run_id: UUID, state: object, *, force: bool) -> None:
        assert (run_id, force) == (self._run.id, True)
        self.ended.append(state.type.value)


@pytest.mark.parametrize(
    ("now", "ended"),
    [
        (StateType.RUNNING, ["CRASHED"]),
        (StateType.CANCELLING, ["CANCELLED"]),
        (StateType.PENDING, ["SCHEDULED"]),
        (StateType.COMPLETED, []),
        (StateType.FAILED, []),
        (None, []),
    ],
)
def test_a_run_ends_by_what_it_is_once_its_process_is_gone(now: StateType | None, ended: list[str]) -> None:
    page = Page(GONE, StateType.RUNNING, now)
    orphans._end_orphans(page)
    assert page.ended == ended


@pytest.mark.parametrize(
    "process",
    [orphans._process_identity(os.getpid()), GONE.replace("/", "-elsewhere/", 1)],
    ids=["living", "elsewhere"],
)
def test_a_run_of_a_living_process_or_of_another_machine_is_left_alone(process: str) -> None:
    page = Page(process, StateType.RUNNING, StateType.RUNNING)
    orphans._end_orphans(page)
    assert page.ended == []
