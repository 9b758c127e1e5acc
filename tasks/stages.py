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
from prefect.states import Completed

from ssl_backdoor.errors import SslBackdoorError, StoreAwayError
from ssl_backdoor.events import about, tell
from ssl_backdoor.progress import OnProgress
from ssl_backdoor.specs import Resources, Stage
from ssl_backdoor.stages import Finished, StageCall, find_finished, run_stage
from ssl_backdoor.store import ArtifactRef, open_store
from tasks.ray_fit import Watcher, run_on_ray

_PAUSES_S = [5.0, 10.0, 20.0, 40.0, 60.0]
ON_RAY: frozenset[Stage] = frozenset({"filter", "train", "tamper", "defend", "detect", "evaluate"})
_here = BoundedSemaphore(2)
"""Held by a stage in the flow's own process: more at once would only take turns at the interpreter's lock."""


@dataclass(frozen=True)
class Place:
    """Where a flow's stages run and who hears of them."""

    store_uri: str
    resources: Resources
    watcher: Watcher

    def listener(self, title: str) -> OnProgress:
        """Progress of ``title`` as the watcher's listener takes it."""
        return lambda progress: self.watcher.listen(title, progress)


def _run(call: StageCall, place: Place) -> State[ArtifactRef]:
    with about(task_run_id=task_run.id, **call.ids), _end_told(place):
        finished = _find_or_make(call, place)
    name = "Reused" if finished.reused else "Completed"
    return Completed(name=name, message=finished.ref.uri, data=finished.ref)


@contextmanager
def _end_told(place: Place) -> Iterator[None]:
    is_over = True
    try:
        yield
    except CancelledError:
        raise  # it had not begun; why is told of another stage
    except StoreAwayError as error:
        is_over = task_run.run_count > place.resources.store_retries
        what = "failed" if is_over else "waits, then tries again"
        tell(what.split(",")[0], f"{what}: {error}", logging.ERROR if is_over else logging.WARNING)
        raise
    except Exception as error:
        kind = "" if isinstance(error, SslBackdoorError) else f"{type(error).__name__}: "
        tell("failed", f"failed: {kind}{error}", logging.ERROR)
        raise
    finally:
        if is_over:
            place.watcher.ended()


def _find_or_make(call: StageCall, place: Place) -> Finished:
    place.watcher.check()
    store = open_store(place.store_uri)
    if (finished := find_finished(call, store)) is not None:  # before a place among the running stages is waited for
        tell("reused", "Reused: it was there already", uri=finished.ref.uri)
        return finished
    if call.stage in ON_RAY:
        return run_on_ray(call, place.store_uri, place.resources, place.watcher)
    with _here:
        place.watcher.check()  # it may have ended meanwhile
        return run_stage(call, store, place.resources, place.listener(call.title))


def _is_store_away(_: object, __: TaskRun, state: State[Any]) -> bool:
    """A stage commits whole or not at all, so doing it again is always safe; it helps only against what passes by."""
    return isinstance(state.data, StoreAwayError)


def _stage_task(stage: Stage) -> Task[Any, Any]:
    return task(
        name=stage,
        cache_policy=NO_CACHE,
        persist_result=False,
        retry_condition_fn=_is_store_away,  # as often as Resources say
        retry_delay_seconds=_PAUSES_S,
        retry_jitter_factor=0.3,
    )(_run)


TASKS: dict[Stage, Task[Any, Any]] = {stage: _stage_task(stage) for stage in get_args(Stage)}
