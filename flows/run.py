"""The flows ``experiment`` and ``matrix``, as a shell, Prefect's page, a schedule and CI all start them."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas import FlowRun, State
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from typing_extensions import override  # of typing itself from Python 3.12 on

from flows import settings as settings_of_flows
from flows.fields import specs_in
from flows.matrix import IncompleteError, run_matrix
from flows.overrides import describe
from flows.pipeline import check_specs, run_experiment
from flows.plan import MAX_SEEDS, AsInRecipeSpec, plan
from flows.recipes import RECIPES
from flows.terminal.console import log_flow_run
from ssl_backdoor import plugins
from ssl_backdoor.data.sources import source_digest
from ssl_backdoor.errors import SpecError, SslBackdoorError, summarize_error, to_printable_line
from ssl_backdoor.events import LOG, log_event
from ssl_backdoor.specs import (
    PLAIN_TEXT,
    Among,
    Attack,
    AttackSpec,
    DatasetSpec,
    DefenceSpec,
    EvaluationSpec,
    ReportSpec,
    Resources,
    Stage,
    TrainSpec,
)
from ssl_backdoor.store import ArtifactRef, ArtifactStore, open_store
from tasks import embedded_prefect
from tasks.orphans import register_flow_run
from tasks.planner import Digest, Sources
from tasks.prefect_page import announce, ignore_prefect_outage, publish
from tasks.ray_fit import Listener, ProgressMonitor, disconnect
from tasks.scheduler import StageScheduler
from tasks.stages import ExecutionContext

Answer = Callable[[StageScheduler, ReportSpec], ArtifactRef]
RecipeName = Annotated[str, Field(json_schema_extra={"enum": list(RECIPES)})]
Text = Annotated[str, Field(json_schema_extra=PLAIN_TEXT)]
# Parameters are kept and shown: an address with a user or a password in it is refused before anything keeps it.
_NO_PASSWORD = PLAIN_TEXT["pattern"].replace("^", "^(?![A-Za-z][A-Za-z0-9+.-]*://[^/]*[@:])", 1)
StoreUri = Annotated[str, Field(json_schema_extra={"pattern": _NO_PASSWORD})]
AS_IN_RECIPE = AsInRecipeSpec()
AS_THE_MACHINE_IS = Resources()


class Shell(NamedTuple):
    """What a shell hands to the flow that it runs in its own process."""

    listener: Listener
    """Hears of progress, in place of a log and Prefect's page."""
    report: ReportSpec
    """The runs, as they were planned from the flow's parameters."""
    store: ArtifactStore
    """Opened and checked."""
    digest: Digest
    """Of the data, computed already."""
    made: list[ArtifactRef]
    """Filled in: the artifacts of the last stage."""


_shell: ContextVar[Shell | None] = ContextVar("shell", default=None)


@contextmanager
def run_for(shell: Shell) -> Iterator[None]:
    """Flows inside the block are ``shell``'s."""
    token = _shell.set(shell)
    try:
        yield
    finally:
        _shell.reset(token)


def _read_as(union: Any) -> BeforeValidator:
    """Read a spec by its ``kind``, so that an error names the one that was meant; {} is as in the recipe."""
    known: TypeAdapter[Any] = TypeAdapter(union)

    def read(value: Any) -> Any:
        if not isinstance(value, dict) or not value:
            return value
        try:
            return known.validate_python(value)
        except ValidationError as error:
            raise PydanticCustomError(
                "spec", "{message}", {"message": describe(error, value, tuple(specs_in(union)))}
            ) from error

    return BeforeValidator(read)


def run(
    recipe: RecipeName = "demo",
    size: Literal["default", "mini", "paper"] = "default",
    pairs: Annotated[int, Field(ge=0)] = 0,
    seeds: Annotated[int, Field(ge=0, le=MAX_SEEDS)] = 0,
    methods: Text = "",
    data: Text = "",
    test_data: Text = "",
    probe_data: Text = "",
    dataset: Annotated[AsInRecipeSpec | DatasetSpec, _read_as(DatasetSpec)] = AS_IN_RECIPE,
    attack: Annotated[AsInRecipeSpec | Attack, Among("attack", AsInRecipeSpec), _read_as(AttackSpec)] = AS_IN_RECIPE,
    train: Annotated[AsInRecipeSpec | TrainSpec, _read_as(TrainSpec)] = AS_IN_RECIPE,
    defences: AsInRecipeSpec | tuple[DefenceSpec, ...] = AS_IN_RECIPE,
    evaluation: Annotated[AsInRecipeSpec | EvaluationSpec, _read_as(EvaluationSpec)] = AS_IN_RECIPE,
    settings: tuple[Text, ...] = (),
    until: Stage = "report",
    store: StoreUri = "",
    resources: Resources = AS_THE_MACHINE_IS,
) -> State[ArtifactRef]:
    """Answer a recipe's question. What the store already holds is reused.

    Args:
        recipe: The named experiment.
        size: mini for two cores, or the paper's own scale, of recipes that have two.
        pairs: The first N trigger/target pairs. 0 is the recipe's own number.
        seeds: Seeds 0 to N-1. 0 is the recipe's own number.
        methods: Only runs of these, such as byol,msf. Empty is all.
        data: Folder, archive, shards or table of images, by the worker's path, s3:// or https://. Empty if embedded.
        test_data: Labelled test images, of recipes whose data have none.
        probe_data: Another labelled set, of transfer recipes.
        dataset: Images, in place of the recipe's in every run.
        attack: Attack, in place of the recipe's in every run.
        train: Method, network and optimisation, in place of the recipe's in every run.
        defences: Defences, in place of the recipe's in every run; an empty list is none.
        evaluation: Probes, in place of the recipe's in every run.
        settings: Single fields to change in every run, such as train.fit.epochs=3.
        until: The last stage to run.
        store: Folder or s3:// where artifacts are kept. Empty is the worker's own.
        resources: How it runs. Changes no result.
    """
    sources = Sources(data or None, test_data or None, probe_data or None)
    with ignore_prefect_outage():
        register_flow_run(UUID(flow_run.id))
    answer = ANSWERS[str(flow_run.flow_name)]
    if (shell := _shell.get()) is not None:
        return _run_and_publish(answer, shell.report, shell.store, resources, until, sources, shell.digest)
    plugins.load_installed()
    amounts: dict[str, Any] = {"pairs": pairs, "seeds": seeds, "methods": methods or None, "settings": settings}
    specs = {"dataset": dataset, "attack": attack, "train": train, "defences": defences, "evaluation": evaluation}
    amounts |= {"specs": specs, "has_data": bool(data), "sources": sources}
    report = plan(recipe, None if size == "default" else size, **amounts)
    opened = open_store(store or settings_of_flows.default_store())
    check_specs(report, opened, sources)
    opened.check()
    return _run_and_publish(answer, report, opened, resources, until, sources)


def _run_and_publish(
    answer: Answer,
    report: ReportSpec,
    store: ArtifactStore,
    resources: Resources,
    until: Stage,
    sources: Sources,
    digest: Digest = source_digest,
) -> State[ArtifactRef]:
    failure: IncompleteError | None = None
    with (
        _progress_listener() as listener,
        StageScheduler(
            ExecutionContext(store, resources, ProgressMonitor(listener)), sources, until, digest
        ) as scheduler,
    ):
        log_event("planned", f"{report.recipe}: {len(report.runs)} run(s), up to {until}, artifacts in {store.root}")
        try:
            page = answer(scheduler, report)
        except IncompleteError as error:
            page, failure = error.page, error
        if (shell := _shell.get()) is not None:
            shell.made.extend(scheduler.refs(until))
        text = f"done up to {until}"
        if until == "report":
            record_url = scheduler.record(page)
            publish(page, store, record_url)
            if record_url.startswith("http"):
                log_event("listed", f"compare its runs in MLflow: {record_url}")
            text = f"report: {page.uri}" + ("" if record_url else " (not in MLflow yet: ssl-backdoor reindex)")
        text = text if failure is None else f"{failure}; {text}"
        log_event("ended", text, logging.INFO if failure is None else logging.WARNING, uri=page.uri)
    if _shell.get() is None:  # someone else than a shell may be watching
        announce(text)
    if failure is not None:
        return Failed(name="Incomplete", message=text, data=failure)
    return Completed(message=text, data=page)


@contextmanager
def _progress_listener() -> Iterator[Listener]:
    """The progress listener: the shell's, or else a log and Prefect's page; in that case Ray is left at the end."""
    if (shell := _shell.get()) is not None:
        yield shell.listener
        return
    try:
        with log_flow_run(UUID(flow_run.id)) as listener:
            yield listener
    finally:
        disconnect()


@wraps(run)
def _run_with_short_errors(*args: Any, **parameters: Any) -> State[ArtifactRef]:
    """``run``; an error becomes the last state's message, in one sentence."""
    try:
        return run(*args, **parameters)
    except SslBackdoorError as error:
        return Failed(message=summarize_error(error), data=error)
    except PrefectException:
        raise
    except Exception as error:
        with log_flow_run(UUID(flow_run.id)):  # as any other line without the values of secrets
            LOG.error("unexpected", exc_info=error)
        return Failed(message=summarize_error(error), data=error)


def _fail_unknown_parameters(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Fail with one sentence a run with unknown parameters: Prefect crashes it without a message before the flow."""
    known = flow.parameters.properties
    if unknown := sorted(flow_run.parameters.keys() - known.keys()):
        message = to_printable_line(f"no parameter is named {', '.join(unknown)}; expected some of {', '.join(known)}")
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Failed(message=message), force=True)


class _ClosedFlow(Flow[..., Any]):
    """A flow that starts its own server, where no variable names one, and refuses parameters in one sentence."""

    @override
    def __call__(self, *args: Any, **parameters: Any) -> Any:
        with embedded_prefect.use_server():  # Prefect's own choice would be a server that asks for no password
            return super().__call__(*args, **parameters)

    @override
    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            return super().validate_parameters(parameters)
        except PrefectException as error:
            raise SpecError(
                to_printable_line(str(error)).removeprefix("Flow run received invalid parameters: - ")
            ) from error


ANSWERS: dict[str, Answer] = {"experiment": run_experiment, "matrix": run_matrix}


def _name_run() -> str:
    """A run is called as its recipe, which may be named after a user's file."""
    return to_printable_line(str(flow_run.parameters["recipe"]))[:250]


def _flow(name: str) -> Flow[Any, Any]:
    runner: Any = ThreadPoolTaskRunner(max_workers=256)  # a stage waits for its inputs in a thread
    ways: dict[str, Any] = {"task_runner": runner, "persist_result": False, "on_crashed": [_fail_unknown_parameters]}
    return _ClosedFlow(_run_with_short_errors, name, flow_run_name=_name_run, **ways)


experiment = _flow("experiment")
"""Every run must succeed."""
matrix = _flow("matrix")
"""A failed run does not stop the others; the flow then ends as failed, with a report of those that succeeded."""
