"""The scheduler of a flow: starts each stage that is submitted, once, as soon as its inputs are there.

Two runs that share a stage (one clean encoder for ten pairs) share the task as well.
"""

import logging
from types import TracebackType
from typing import Any, Self, final, get_args
from uuid import UUID

from prefect.client.schemas import State
from prefect.futures import PrefectFuture, as_completed
from typing_extensions import override  # of typing itself from Python 3.12 on

from ssl_backdoor.data.ingest import source_digest
from ssl_backdoor.errors import summarize_error, to_printable_line
from ssl_backdoor.specs import Stage
from ssl_backdoor.stages import StageCall
from ssl_backdoor.store import ArtifactRef
from tasks.planner import Digest, Sources, StagePlanner
from tasks.prefect_events import flush_prefect_events
from tasks.stages import TASKS, ExecutionContext

ORDER: tuple[Stage, ...] = get_args(Stage)


@final
class StageScheduler(StagePlanner):
    """Starts each stage once.

    Entered for the length of a flow: on leaving it stages that have not started are called off and, unless the user
    ended the flow, Prefect has the last state of those that were.
    """

    def __init__(
        self,
        context: ExecutionContext,
        sources: Sources,
        until: Stage = "report",
        digest: Digest = source_digest,
    ) -> None:
        super().__init__(digest, sources)
        self._context = context
        self.store = context.store
        self._until = ORDER.index(until)
        self._futures: dict[ArtifactRef, PrefectFuture[Any]] = {}
        self._inputs: dict[ArtifactRef, tuple[ArtifactRef, ...]] = {}
        self._recorded: list[UUID] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.monitor.close()
        if kind is None or issubclass(kind, Exception):
            ended = [one.task_run_id for one in self._futures.values() if one.state.is_final()]
            flush_prefect_events([*ended, *self._recorded])

    def refs(self, stage: Stage) -> tuple[ArtifactRef, ...]:
        """Of the stages of this kind that were started."""
        return tuple(ref for ref in self._futures if ref.stage == stage)

    def record(self, page: ArtifactRef) -> str:
        """The report in MLflow, and where it is read; where that cannot be written a warning, and nothing."""
        from tasks.tracking import record  # MLflow takes seconds to import

        recorded = record(page, self.store, return_state=True)
        if recorded.state_details.task_run_id is not None:
            self._recorded.append(recorded.state_details.task_run_id)
        if recorded.is_completed():
            return str(recorded.result())
        logging.getLogger("ssl_backdoor").warning(
            "MLflow could not be written (%s); the report is in the store, `ssl-backdoor reindex` records it later.",
            to_printable_line(recorded.message or ""),
        )
        return ""

    def wait(self, *refs: ArtifactRef) -> None:
        """Wait for every stage, or for ``refs``; the first failure ends the wait and is raised.

        Raises:
            SslBackdoorError: what a stage raised.
        """
        futures = [self._futures[ref] for ref in refs or self._futures if ref in self._futures]
        for future in as_completed(futures):
            future.wait()  # until then its state may still be the one before the last
            if (error := _failure(future.state)) is not None:
                raise error

    def collect_failures(self) -> dict[ArtifactRef, str]:
        """Wait for every stage, failed ones too; return which artifacts could not be made, and why.

        A stage whose input is missing has the input's cause. Raises only where the user ended the flow.
        """
        causes: dict[ArtifactRef, str] = {}
        for ref, future in self._futures.items():  # inputs come before what needs them
            future.wait()
            if (error := _failure(future.state)) is not None:
                causes[ref] = summarize_error(error)
            elif not future.state.is_completed():
                causes[ref] = next((causes[one] for one in self._inputs[ref] if one in causes), future.state.name or "")
        return causes

    @override
    def submit(self, call: StageCall) -> ArtifactRef:
        ref = self.store.ref(call.stage, call.key)
        are_inputs_made = all(one in self._futures for one in call.inputs.values())
        if ref not in self._futures and are_inputs_made and ORDER.index(call.stage) <= self._until:
            self._inputs[ref] = tuple(call.inputs.values())
            before = [self._futures[one] for one in self._inputs[ref]]
            self._context.monitor.add_stage(call)
            retries = self._context.resources.store_retries
            # A text for a name is a format to Prefect: a class called {task} would be looked up in it.
            stage_task = TASKS[call.stage].with_options(task_run_name=lambda: call.title, retries=retries)
            self._futures[ref] = stage_task.submit(call, self._context, wait_for=before)
        return ref


def _failure(state: State[Any]) -> BaseException | None:
    """The exception behind a failed state; None for success and for states that only follow another failure."""
    if state.is_completed() or state.name in ("NotReady", "Pending"):
        return None
    result = state.result(raise_on_failure=False)
    return result if isinstance(result, BaseException) else RuntimeError(f"{state.name}: {state.message}")
