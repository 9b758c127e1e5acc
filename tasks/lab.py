"""The bench a flow works at: states each stage once, starts it as soon as its inputs are there.

A stage's key is known before its work is done, so two runs that share a stage (one clean encoder for ten pairs)
share the task as well.
"""

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from prefect.client.schemas import State
from prefect.futures import PrefectFuture, as_completed

from ssl_backdoor.data.ingest import source_digest
from ssl_backdoor.errors import SpecError, printed, sentence
from ssl_backdoor.specs import (
    AttackSpec,
    DatasetSpec,
    DefenceSpec,
    EvaluationSpec,
    ImageTriggerSpec,
    ReportSpec,
    Stage,
    TrainSpec,
)
from ssl_backdoor.stages import (
    DefendStage,
    EvaluateStage,
    IngestStage,
    PoisonStage,
    StageCall,
    StageSpec,
    TrainStage,
    targets_of,
    trigger_of,
)
from ssl_backdoor.store import ArtifactRef, open_store
from tasks.history import wait_until_written
from tasks.stages import TASKS, Place

ORDER: tuple[Stage, ...] = ("ingest", "poison", "train", "defend", "evaluate", "report")


class Lab:
    """Six verbs; each returns the reference its stage will have, and starts the stage once.

    Entered for the length of a flow: on leaving it stages that have not started are called off and, unless the user
    ended the flow, Prefect has the last state of those that were.
    """

    def __init__(
        self,
        place: Place,
        data: str | None,
        until: Stage = "report",
        *,
        probe_data: str | None = None,
        test_data: str | None = None,
    ) -> None:
        self._place = place
        self._data = data
        self._test_data = test_data
        self._probe_data = probe_data
        self._store = open_store(place.store_uri)
        self._until = ORDER.index(until)
        self._futures: dict[ArtifactRef, PrefectFuture[Any]] = {}
        self._inputs: dict[ArtifactRef, tuple[ArtifactRef, ...]] = {}
        self._digests: dict[tuple[str | None, ...], str] = {}
        self._recorded: list[UUID] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.watcher.close()
        if kind is None or issubclass(kind, Exception):
            ended = [one.task_run_id for one in self._futures.values() if one.state.is_final()]
            wait_until_written([*ended, *self._recorded])

    def ingest(self, dataset: DatasetSpec) -> ArtifactRef:
        """The images."""
        return self._ingest(dataset, self._data, "ingest", self._test_data)

    def ingest_other(self, dataset: DatasetSpec) -> ArtifactRef:
        """The images of another labelled set, for probes.

        Raises:
            SpecError: none was given.
        """
        if self._probe_data is None:
            raise SpecError("these runs are probed on another labelled set: give it with --probe-data PATH")
        return self._ingest(dataset, self._probe_data, "ingest, to probe on")

    def _ingest(self, dataset: DatasetSpec, data: str | None, title: str, test_data: str | None = None) -> ArtifactRef:
        place = (dataset.source.model_dump_json(), dataset.test_source.model_dump_json(), data, test_data)
        if place not in self._digests:
            self._digests[place] = source_digest(dataset, data, test_data)
        spec = IngestStage(dataset=dataset)
        call = StageCall(spec, {}, source=self._digests[place], data=data, test_data=test_data, title=title)
        return self._start(call)

    def poison(self, attack: AttackSpec, images: ArtifactRef, seed: int, title: str) -> ArtifactRef:
        """The plan of an attack and its overlay."""
        return self._state(PoisonStage(attack=attack, seed=seed), f"poison {title}", dataset=images)

    def train(self, train: TrainSpec, seed: int, title: str, **inputs: ArtifactRef) -> ArtifactRef:
        """An encoder, from ``dataset`` and perhaps ``poison``."""
        return self._state(TrainStage(train=train, seed=seed), f"train {title}", **inputs)

    def defend(
        self, defence: DefenceSpec, suspect: ArtifactRef, images: ArtifactRef, seed: int, title: str
    ) -> ArtifactRef:
        """A repaired encoder."""
        return self._state(DefendStage(defence=defence, seed=seed), f"defend {title}", dataset=images, suspect=suspect)

    def evaluate(
        self,
        evaluation: EvaluationSpec,
        attack: AttackSpec,
        seed: int,
        title: str,
        *,
        is_other: bool = False,
        **inputs: ArtifactRef,
    ) -> ArtifactRef:
        """The measurements of ``model`` on ``dataset`` under the attack's trigger, or for its target images.

        ``is_other``: the dataset is another than the attack was made for; it has neither its target class nor its
        target images.
        """
        trigger, target_class = trigger_of(attack)
        if not isinstance(trigger, ImageTriggerSpec):
            inputs.pop("poison", None)  # a grid is drawn from its seed; an image trigger travels with the poison
        spec = EvaluateStage(
            evaluation=evaluation,
            trigger=trigger,
            target_class="" if is_other else target_class,
            targets=None if is_other else targets_of(attack),
            seed=seed,
        )
        return self._state(spec, f"evaluate {title}", **inputs)

    def report(self, report: ReportSpec, evidence: Mapping[str, ArtifactRef]) -> ArtifactRef:
        """The page, the tables, the answer."""
        return self._start(StageCall(report, dict(evidence), title="report"))

    def record(self, page: ArtifactRef) -> str:
        """The report in MLflow, and where it is read; where that cannot be written a warning, and nothing."""
        from tasks.tracking import record  # MLflow takes seconds to import

        recorded = record(page, self._store, return_state=True)
        if recorded.state_details.task_run_id is not None:
            self._recorded.append(recorded.state_details.task_run_id)
        if recorded.is_completed():
            return str(recorded.result())
        logging.getLogger("ssl_backdoor").warning(
            "MLflow could not be written (%s); the report is in the store, `ssl-backdoor reindex` records it later.",
            printed(recorded.message or ""),
        )
        return ""

    def wait(self, *refs: ArtifactRef) -> None:
        """Wait for every stage, or for ``refs``; the first failure ends the wait, so that a mistake is told at once.

        Raises:
            SslBackdoorError: what a stage raised.
        """
        futures = [self._futures[ref] for ref in refs or self._futures if ref in self._futures]
        for future in as_completed(futures):
            future.wait()  # until then its state may still be the one before the last
            if (error := _failure(future.state)) is not None:
                raise error

    def settle(self) -> dict[ArtifactRef, str]:
        """Wait for every stage, failed ones too; what could not be made, and why.

        A stage whose input is missing has the input's cause. Raises only where the user ended the flow.
        """
        causes: dict[ArtifactRef, str] = {}
        for ref, future in self._futures.items():  # inputs come before what needs them
            future.wait()
            if (error := _failure(future.state)) is not None:
                causes[ref] = sentence(error)
            elif not future.state.is_completed():
                causes[ref] = next((causes[one] for one in self._inputs[ref] if one in causes), future.state.name or "")
        return causes

    def _state(self, spec: StageSpec, title: str, **inputs: ArtifactRef) -> ArtifactRef:
        return self._start(StageCall(spec, inputs, title=title))

    def _start(self, call: StageCall) -> ArtifactRef:
        ref = self._store.ref(call.stage, call.key)
        if ref not in self._futures and ORDER.index(call.stage) <= self._until:
            self._inputs[ref] = tuple(call.inputs.values())
            before = [self._futures[one] for one in self._inputs[ref] if one in self._futures]
            self._place.watcher.stated(call)
            retries = self._place.resources.store_retries
            stage_task = TASKS[call.stage].with_options(task_run_name=call.title, retries=retries)
            self._futures[ref] = stage_task.submit(call, self._place, wait_for=before)
        return ref


def _failure(state: State[Any]) -> BaseException | None:
    """The exception behind a failed state; None for success and for states that only follow another failure."""
    if state.is_completed() or state.name in ("NotReady", "Pending"):
        return None
    result = state.result(raise_on_failure=False)
    return result if isinstance(result, BaseException) else RuntimeError(f"{state.name}: {state.message}")
