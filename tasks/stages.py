"""One Prefect task per stage; each is adapter code only.

``ssl_backdoor.stages`` decides reuse, so Prefect's own cache stays off; a reused stage ends in the state ``Reused``.
Ingestion, poisoning and reporting run in the flow's process, the rest on Ray.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any, get_args

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State, TaskRun
from prefect.runtime import task_run
from prefect.states import Completed, Pending, Running

from ssl_backdoor.errors import SourceAwayError, SslBackdoorError, StoreAwayError
from ssl_backdoor.events import log_context, log_event
from ssl_backdoor.progress import OnProgress
from ssl_backdoor.specs import Resources, Stage
from ssl_backdoor.stages import Finished, StageCall, find_finished, run_stage
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from tasks.prefect_events import state_display
from tasks.ray_fit import ProgressMonitor, run_on_ray

_RETRY_DELAYS_S = [5.0, 10.0, 20.0, 40.0, 60.0]
ON_RAY: frozenset[Stage] = frozenset({"filter", "train", "tamper", "defend", "detect", "evaluate"})
_LOCAL_SLOTS = BoundedSemaphore(2)
"""For stages in the flow's own process: more at once would only contend for the interpreter's lock."""


@dataclass(frozen=True)
class ExecutionContext:
    """Where a flow's stages run, and the monitor of their progress."""

    store: ArtifactStore
    resources: Resources
    monitor: ProgressMonitor

    def listener(self, title: str) -> OnProgress:
        """Progress of ``title`` as the monitor's listener takes it."""
        return lambda progress: self.monitor.listen(title, progress)


def _run(call: StageCall, context: ExecutionContext) -> State[ArtifactRef]:
    with log_context(task_run_id=task_run.id, **call.ids), _log_failure(context):
        finished = _find_or_make(call, context)
    name = "Reused" if finished.reused else "Completed"
    return Completed(name=name, message=finished.ref.uri, data=finished.ref)


@contextmanager
def _log_failure(context: ExecutionContext) -> Iterator[None]:
    is_over = True
    try:
        yield
    except CancelledError:
        raise  # it had not started; the stage that failed says why
    except (StoreAwayError, SourceAwayError) as error:
        is_over = task_run.run_count > context.resources.store_retries
        what = "failed" if is_over else "waits, then tries again"
        log_event(what.split(",")[0], f"{what}: {error}", logging.ERROR if is_over else logging.WARNING)
        raise
    except Exception as error:
        kind = "" if isinstance(error, SslBackdoorError) else f"{type(error).__name__}: "
        log_event("failed", f"failed: {kind}{error}", logging.ERROR)
        raise
    finally:
        if is_over:
            context.monitor.finish_stage()


def _find_or_make(call: StageCall, context: ExecutionContext) -> Finished:
    context.monitor.raise_if_aborted()
    if (finished := find_finished(call, context.store)) is not None:  # before this stage queues for a slot
        log_event("reused", "Reused: it was there already", uri=finished.ref.uri)
        return finished
    show = state_display()
    show(Pending(name="Queued", message="waits for a CPU or a GPU"))
    if call.stage in ON_RAY:
        with context.monitor.on_begin(call, lambda: show(Running())):
            return run_on_ray(call, context.store.root, context.resources, context.monitor)
    with _LOCAL_SLOTS:
        context.monitor.raise_if_aborted()  # it may have ended meanwhile
        show(Running())
        return run_stage(call, context.store, context.resources, context.listener(call.title))


def _is_away(_: object, __: TaskRun, state: State[Any]) -> bool:
    """A stage commits whole or not at all, so doing it again is always safe; it helps only against what passes by."""
    return isinstance(state.data, StoreAwayError | SourceAwayError)


def _stage_task(stage: Stage) -> Task[Any, Any]:
    return task(
        name=stage,
        cache_policy=NO_CACHE,
        persist_result=False,
        retry_condition_fn=_is_away,  # as often as Resources say
        retry_delay_seconds=_RETRY_DELAYS_S,
        retry_jitter_factor=0.3,
    )(_run)


TASKS: dict[Stage, Task[Any, Any]] = {stage: _stage_task(stage) for stage in get_args(Stage)}
