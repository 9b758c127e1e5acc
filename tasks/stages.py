"""One Prefect task per stage; each is adapter code only.

The store decides reuse, so Prefect's own cache stays off; a stage that was already there ends in the state
``Reused``. Ingestion, poisoning and reporting run in the flow's process, the rest on Ray.
"""

from dataclasses import dataclass
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.states import Completed

from ssl_backdoor.progress import OnProgress
from ssl_backdoor.specs import Resources, Stage
from ssl_backdoor.stages import StageCall, run_stage
from ssl_backdoor.store import ArtifactRef, open_store
from tasks.ray_fit import Watcher, run_on_ray

ON_RAY: frozenset[Stage] = frozenset({"train", "defend", "evaluate"})


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
    try:
        return _find_or_make(call, place)
    finally:
        place.watcher.ended()


def _find_or_make(call: StageCall, place: Place) -> State[ArtifactRef]:
    place.watcher.check()
    store = open_store(place.store_uri)
    found = store.find(call.stage, call.key)
    if found is not None:
        return Completed(name="Reused", message=found.uri, data=found)
    if call.stage in ON_RAY:
        finished = run_on_ray(call, place.store_uri, place.resources, place.watcher)
    else:
        finished = run_stage(call, store, place.resources, place.listener(call.title))
    name = "Reused" if finished.reused else "Completed"
    return Completed(name=name, message=finished.ref.uri, data=finished.ref)


def _stage_task(stage: Stage) -> Task[Any, Any]:
    return task(name=stage, cache_policy=NO_CACHE, persist_result=False)(_run)


TASKS: dict[Stage, Task[Any, Any]] = {
    stage: _stage_task(stage) for stage in ("ingest", "poison", "train", "defend", "evaluate", "report")
}
