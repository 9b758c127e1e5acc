"""States of task runs on Prefect's page: those that Prefect does not know of, and the last ones of a flow.

Task states follow the flow as events. The server that a shell starts for itself ends with the shell and drops the
events it has not written yet: Prefect's page would show stages that run for ever.
"""

import logging
import time
from collections.abc import Callable, Iterable
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.context import TaskRunContext
from prefect.settings import PREFECT_API_URL
from prefect.utilities.engine import emit_task_run_state_change_event

from tasks import embedded_prefect

_TIMEOUT_S = 30.0
_PAGE = 200  # what one answer of the API holds


def state_display() -> Callable[[State], None]:
    """Shows a state of the present task run on Prefect's page, from any thread; what Prefect does next is unchanged."""
    context = TaskRunContext.get()

    def show(state: State) -> None:
        if context is not None:
            emit_task_run_state_change_event(context.task_run, context.task_run.state, state)

    return show


def flush_prefect_events(ended: Iterable[UUID]) -> None:
    """Wait until the server of this shell has written the last state of the task runs ``ended``, all of them over.

    A server that was started on its own outlives the flow: nothing is waited for.
    """
    if PREFECT_API_URL.value() not in (None, embedded_prefect.api_url()):
        return
    left = list(ended)
    deadline = time.monotonic() + _TIMEOUT_S
    with get_client(sync_client=True) as client:
        while left:
            page = left[:_PAGE]
            found = client.read_task_runs(task_run_filter=TaskRunFilter(id=TaskRunFilterId(any_=page)))
            written = {run.id for run in found if run.state is not None and run.state.is_final()}
            left = [one for one in left if one not in written]
            if len(written) == len(page):
                continue
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
    if left:
        logging.getLogger("ssl_backdoor").warning(
            "Prefect's page may show %d stage(s) as unfinished that have ended; results are not affected.", len(left)
        )
