"""The flows ``experiment`` and ``matrix``, as a shell, Prefect's page, a schedule and CI all start them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Literal
from uuid import UUID

from prefect import Flow, flow
from prefect.client.schemas import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import settings
from flows.console import Lines
from flows.matrix import IncompleteError, every_cell
from flows.pipeline import every_run
from flows.plan import AsInRecipeSpec, plan
from flows.recipes import RECIPES
from ssl_backdoor.errors import SslBackdoorError
from ssl_backdoor.progress import Progress
from ssl_backdoor.specs import (
    AnyAttack,
    AnyDefence,
    DatasetSpec,
    EvaluationSpec,
    ReportSpec,
    Resources,
    Stage,
    TrainSpec,
)
from ssl_backdoor.store import ArtifactRef, open_store
from tasks.lab import Lab
from tasks.ray_fit import Listener, Watcher, disconnect
from tasks.stages import Place
from tasks.window import StageProgress, publish

Answer = Callable[[Lab, ReportSpec], ArtifactRef]
RecipeName = Annotated[str, Field(json_schema_extra={"enum": list(RECIPES)})]
AS_IN_RECIPE = AsInRecipeSpec()
AS_THE_MACHINE_IS = Resources()
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """``listener`` hears of the progress of flows inside the block, in place of a log and Prefect's page."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def run(
    recipe: RecipeName = "demo",
    size: Literal["default", "mini", "paper"] = "default",
    pairs: Annotated[int, Field(ge=0)] = 0,
    seeds: Annotated[int, Field(ge=0)] = 0,
    methods: str = "",
    data: str = "",
    test_data: str = "",
    probe_data: str = "",
    dataset: AsInRecipeSpec | DatasetSpec = AS_IN_RECIPE,
    attack: AsInRecipeSpec | AnyAttack = AS_IN_RECIPE,
    train: AsInRecipeSpec | TrainSpec = AS_IN_RECIPE,
    defence: AsInRecipeSpec | AnyDefence = AS_IN_RECIPE,
    evaluation: AsInRecipeSpec | EvaluationSpec = AS_IN_RECIPE,
    settings: tuple[str, ...] = (),
    until: Stage = "report",
    store: str = "",
    resources: Resources = AS_THE_MACHINE_IS,
) -> State[ArtifactRef]:
    """Answer a recipe's question. What the store already holds is reused.

    Args:
        recipe: The named experiment.
        size: mini for two cores, or the paper's own scale, of recipes that have two.
        pairs: The first N trigger/target pairs. 0 is the recipe's own number.
        seeds: Seeds 0 to N-1. 0 is the recipe's own number.
        methods: Only runs of these, such as byol,msf. Empty is all.
        data: Folder, archive, shards or table of images, as the worker sees it. Empty where data are embedded.
        test_data: Labelled test images, of recipes whose data have none.
        probe_data: Another labelled set, of transfer recipes.
        dataset: Images, in place of the recipe's in every run.
        attack: Attack, in place of the recipe's in every run.
        train: Method, network and optimisation, in place of the recipe's in every run.
        defence: Defence, in place of the recipe's in every run.
        evaluation: Probes, in place of the recipe's in every run.
        settings: Single fields to change in every run, such as train.fit.epochs=3.
        until: The last stage to run.
        store: Folder or s3:// where artifacts are kept. Empty is the worker's own.
        resources: How it runs. Changes no result.
    """
    amounts: dict[str, Any] = {"pairs": pairs, "seeds": seeds, "methods": methods or None, "settings": settings}
    specs = {"dataset": dataset, "attack": attack, "train": train, "defence": defence, "evaluation": evaluation}
    sources = {"data": data or None, "test_data": test_data or None, "probe_data": probe_data or None}
    try:
        report = plan(recipe, None if size == "default" else size, specs=specs, has_data=bool(data), **amounts)
        return _answered(ANSWERS[str(flow_run.flow_name)], report, store, resources, until, sources)
    except SslBackdoorError as error:
        return Failed(message=str(error), data=error)


def _answered(
    answer: Answer, report: ReportSpec, store_uri: str, resources: Resources, until: Stage, sources: dict[str, Any]
) -> State[ArtifactRef]:
    store = open_store(store_uri or settings.default_store())
    store.check()
    failure: IncompleteError | None = None
    with _listening() as listener, Lab(Place(store.root, resources, Watcher(listener)), until=until, **sources) as lab:
        try:
            page = answer(lab, report)
        except IncompleteError as error:
            page, failure = error.page, error
        text = f"done up to {until}"
        if until == "report":
            record_url = lab.record(page)
            publish(page, store, record_url)
            text = f"report: {page.uri}" + ("" if record_url else " (not in MLflow yet: ssl-backdoor reindex)")
    if failure is not None:
        return Failed(name="Incomplete", message=f"{failure}; {text}", data=failure)
    return Completed(message=text, data=page)


@contextmanager
def _listening() -> Iterator[Listener]:
    """Who hears of progress: whom a shell named, or else a log and Prefect's page; then nothing is left on Ray."""
    if (told := _listener.get()) is not None:
        yield told
        return
    lines, window = Lines(sys.stderr), StageProgress(UUID(flow_run.id))

    def both(title: str, progress: Progress) -> None:
        lines(title, progress)
        window(title, progress)

    try:
        yield both
    finally:
        disconnect()


ANSWERS: dict[str, Answer] = {"experiment": every_run, "matrix": every_cell}


def _flow(name: str) -> Flow[Any, Any]:
    runner: Any = ThreadPoolTaskRunner(max_workers=256)  # a stage waits for its inputs in a thread
    return flow(name=name, flow_run_name="{recipe}", task_runner=runner, persist_result=False)(run)


experiment = _flow("experiment")
"""Every run must come through."""
matrix = _flow("matrix")
"""A run that fails leaves the others; the flow then ends as failed, with a report of those that came through."""
