"""Each stage as one pure statement: (spec, input refs) -> ArtifactRef.

``run_stage`` returns the artifact if it exists, which ``find_finished`` alone decides; else the stage's body runs in a
scratch folder and its files are committed, manifest last. Flows, Ray workers, the command line and notebooks all come
through here.
"""

import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, assert_never

from pydantic import Field

from ssl_backdoor import plugins
from ssl_backdoor.data.counts import Counts
from ssl_backdoor.data.stored import open_dataset, open_lazy_dataset, open_overlay, open_training_data
from ssl_backdoor.errors import SpecError, needs_extra, to_printable_line, translate_os_errors
from ssl_backdoor.events import log_context, log_event
from ssl_backdoor.identity import artifact_key, canonical
from ssl_backdoor.progress import OnProgress, silent
from ssl_backdoor.specs import (
    AttackSpec,
    DatasetSpec,
    DefenceSpec,
    DetectorSpec,
    EvaluationSpec,
    FilesSourceSpec,
    Filter,
    FitSpec,
    Repair,
    ReportSpec,
    Resources,
    Spec,
    Stage,
    StageContext,
    TamperAttack,
    TargetsSpec,
    TrainSpec,
    TriggerSpec,
)
from ssl_backdoor.store import ArtifactRef, ArtifactStore

SIBLING = "sibling_"
"""Roles that begin so are what the detector of a detect stage said of clean encoders of other seeds."""


class IngestStage(Spec):
    """raw images -> shards and a samples table."""

    kind: Literal["ingest"] = "ingest"
    dataset: DatasetSpec


class PoisonStage(Spec):
    """dataset -> poison plan and overlay."""

    kind: Literal["poison"] = "poison"
    attack: AttackSpec
    seed: int


class TrainStage(Spec):
    """dataset (and poison) -> backbone."""

    kind: Literal["train"] = "train"
    train: TrainSpec
    seed: int


class FilterStage(Spec):
    """dataset (and poison, and perhaps the encoder trained on both) -> scores and the samples to leave out."""

    kind: Literal["filter"] = "filter"
    defence: DefenceSpec
    seed: int


class TamperStage(Spec):
    """dataset and clean encoder -> backdoored encoder."""

    kind: Literal["tamper"] = "tamper"
    attack: AttackSpec
    seed: int


class DefendStage(Spec):
    """dataset and suspect -> repaired encoder."""

    kind: Literal["defend"] = "defend"
    defence: DefenceSpec
    seed: int


class DetectStage(Spec):
    """dataset, encoder and perhaps poison -> scores, p-values, and how well they tell.

    Of a detector of inputs the trigger is named, and how many unseen ones of its style are tried.
    """

    kind: Literal["detect"] = "detect"
    detector: DetectorSpec
    trigger: TriggerSpec | None = None
    unseen_triggers: int = Field(default=0, ge=0)
    seed: int


class EvaluateStage(Spec):
    """dataset and backbone -> predictions and measurements, under one trigger or for the targets x'.

    The attack's trigger and targets are named, not its number of poisons: a control is measured once per pair.
    """

    kind: Literal["evaluate"] = "evaluate"
    evaluation: EvaluationSpec
    trigger: TriggerSpec | None
    target_class: str
    targets: TargetsSpec | None = None
    seed: int


StageSpec = Annotated[
    IngestStage
    | PoisonStage
    | FilterStage
    | TrainStage
    | TamperStage
    | DefendStage
    | DetectStage
    | EvaluateStage
    | ReportSpec,
    Field(discriminator="kind"),
]


@dataclass(frozen=True)
class StageCall:
    """One stage applied to its inputs; ``key`` is known before any work is done."""

    spec: StageSpec
    inputs: Mapping[str, ArtifactRef] = field(default_factory=dict)
    """Role -> artifact, e.g. {"dataset": ..., "suspect": ...}."""
    source: str = ""
    """Digest of the raw source (ingest only), where ``source_digest`` has computed it already."""
    data: str | None = None
    """Path of the raw source (ingest only); not part of the key."""
    test_data: str | None = None
    """Path of the second source of test images, if the dataset has one."""
    check: Callable[[Counts], None] | None = field(default=None, compare=False, repr=False)
    """Of an ingest: sees what is kept before an image is decoded, and may refuse it."""
    carried: object = field(default=plugins.CARRIED, compare=False, repr=False)
    """The code of plug-ins, which an encoder of the user's own is made with: it goes where the call goes."""
    title: str = ""
    """For people: "train suspect, pair 3". On one line of printable characters, whatever a class is called."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", to_printable_line(self.title))
        match self.spec:
            case PoisonStage(attack=attack) | TamperStage(attack=attack):
                object.__setattr__(self, "spec", self.spec.model_copy(update={"attack": attack.with_digests()}))

    @cached_property
    def data_digest(self) -> str:
        """Identity of the raw source, so that other data never get this artifact; empty where none is read.

        Raises:
            DataError: the source cannot be read.
            SpecError: ``source`` is no digest; ``test_data`` missing, or given and not asked for.
        """
        if not isinstance(self.spec, IngestStage):
            return ""
        dataset = self.spec.dataset
        if not self.source:
            from ssl_backdoor.data.sources import source_digest

            return source_digest(dataset, self.data, self.test_data)
        is_of_files = isinstance(dataset.source, FilesSourceSpec) and (self.data or self.test_data)
        if is_of_files and not re.fullmatch("[0-9a-f]{64}", self.source):
            raise SpecError(
                "expected the identity of the data as source_digest(dataset, data, test_data) gives it, found "
                f"source={self.source!r}: leave source out to have it computed"
            )
        return self.source

    @property
    def stage(self) -> Stage:
        """The stage's name."""
        return self.spec.kind

    @property
    def key(self) -> str:
        """Identity of the result."""
        keys = {role: ref.key for role, ref in self.inputs.items()}
        return artifact_key(self.stage, self.spec, keys | ({"source": self.data_digest} if self.data_digest else {}))

    @property
    def fit(self) -> FitSpec | None:
        """How an encoder is trained here, in which several replicas may share; None where none is."""
        match self.spec:
            case TrainStage(train=train):
                return train.fit
            case DefendStage(defence=Repair() as repair):
                return repair.fit
        return None

    @property
    def ids(self) -> dict[str, str]:
        """What events of this stage are about."""
        return {"stage": self.stage, "key": self.key, "title": self.title or self.stage}


class Finished(NamedTuple):
    """What a stage left behind."""

    ref: ArtifactRef
    reused: bool


def find_finished(call: StageCall, store: ArtifactStore) -> Finished | None:
    """The call's artifact where ``store`` has one to reuse: the only place that decides it. Nothing is made.

    Raises:
        StoreError: the store cannot be read.
    """
    ref = store.find(call.stage, call.key)
    return None if ref is None else Finished(ref, reused=True)


def run_stage(
    call: StageCall, store: ArtifactStore, resources: Resources | None = None, on_progress: OnProgress = silent
) -> Finished:
    """Return the call's artifact from ``store``, making it first if it is not there.

    Raises:
        UserError: the spec, data or store cannot be used; nothing is committed.
        TrainingError: the optimisation failed; its last checkpoint stays in the store.
    """
    if (finished := find_finished(call, store)) is not None:
        return finished
    started, is_leader = time.perf_counter(), _is_leader(call, resources or Resources())
    room = translate_os_errors(f"the folder for temporary files {tempfile.gettempdir()} (TMPDIR)", only_full=True)
    with (
        _log_stage(call, store, is_leader),
        room,
        tempfile.TemporaryDirectory(prefix=f"ssl-backdoor-{call.stage}-") as scratch,
    ):
        summary = _body(call, store, Path(scratch), resources or Resources(), on_progress)
        if not is_leader:
            return Finished(store.ref(call.stage, call.key), reused=False)
        ref = store.commit(
            call.stage,
            call.key,
            Path(scratch),
            spec=canonical(call.spec),
            inputs={role: ref.key for role, ref in call.inputs.items()}
            | ({"source": call.data_digest} if call.data_digest else {}),
            summary=summary,
            seconds=round(time.perf_counter() - started, 3),
            adopts=True,
        )
    store.drop_checkpoints(call.stage, call.key)
    return Finished(ref, reused=False)


@contextmanager
def _log_stage(call: StageCall, store: ArtifactStore, is_leader: bool) -> Iterator[None]:
    """Log when the stage begins and when it is finished; of several replicas only the first does."""
    began_s = time.perf_counter()
    with log_context(**call.ids):
        if is_leader:
            where: dict[str, Any] = {"host": platform.node(), "pid": os.getpid()}
            log_event("begins", f"begins on {where['host']}, process {where['pid']}", **where)
        yield
        if is_leader:
            seconds, uri = round(time.perf_counter() - began_s, 3), store.ref(call.stage, call.key).uri
            log_event("finished", f"finished after {seconds:,.1f} s", seconds=seconds, uri=uri)


def _is_leader(call: StageCall, resources: Resources) -> bool:
    """Of several replicas of a training (torchrun and Ray Train both set RANK) the first commits.

    Nobody else looks at RANK: batch systems set it for every process.
    """
    return call.fit is None or resources.workers == 1 or os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class StoreCheckpoints:
    """The checkpoints of one training, kept in the store."""

    store: ArtifactStore
    stage: Stage
    key: str

    def save(self, step: int, file: Path) -> None:
        """Keep ``file`` as the state after ``step`` steps."""
        self.store.save_checkpoint(self.stage, self.key, step, file)

    def load(self) -> tuple[int, Path] | None:
        """The newest readable state, or None."""
        return self.store.load_checkpoint(self.stage, self.key)


def _body(
    call: StageCall, store: ArtifactStore, out: Path, resources: Resources, on_progress: OnProgress
) -> dict[str, Any]:
    """Run the stage's science into ``out``; heavy modules are imported only by the stage that needs them."""
    spec, inputs = call.spec, call.inputs
    checkpoints = StoreCheckpoints(store, call.stage, call.key)
    match spec:
        case IngestStage():
            from ssl_backdoor.data.ingest import ingest

            return ingest(spec.dataset, call.data, out, on_progress, call.test_data, call.check, call.data_digest)
        case PoisonStage():
            from ssl_backdoor.poison.craft import poison

            return poison(spec.attack, open_lazy_dataset(store, inputs["dataset"]), out, spec.seed, on_progress)
        case FilterStage(defence=Filter() as chosen):
            from ssl_backdoor.detection.run import filter_samples
            from ssl_backdoor.device import pick_device

            encoder = store.fetch(inputs["model"]) if "model" in inputs else None
            data, device = open_training_data(store, inputs), str(pick_device(resources))
            return filter_samples(chosen, *data, encoder, out, spec.seed, device, on_progress)
        case TrainStage():
            from ssl_backdoor.train.pretrain import pretrain

            data = open_training_data(store, inputs)
            return pretrain(spec.train, *data, out, spec.seed, resources, checkpoints, on_progress)
        case TamperStage(attack=TamperAttack() as attack):
            dataset, clean = open_dataset(store, inputs["dataset"]), store.fetch(inputs["model"])
            return attack.tamper(dataset, clean, StageContext(out, spec.seed, resources, checkpoints, on_progress))
        case DefendStage(defence=Repair() as repair):
            dataset, suspect = open_dataset(store, inputs["dataset"]), store.fetch(inputs["suspect"])
            return repair.repair(dataset, suspect, StageContext(out, spec.seed, resources, checkpoints, on_progress))
        case FilterStage() | TamperStage() | DefendStage():
            raise SpecError(f"{call.title}: nothing of its spec can be done in a {call.stage} stage")
        case DetectStage():
            return _detect(spec, inputs, store, out, resources, on_progress)
        case EvaluateStage():
            return _evaluate(spec, inputs, store, out, resources, on_progress)
        case ReportSpec():
            with needs_extra("report", "a report"):
                from ssl_backdoor.report.gather import report

            return report(spec, inputs, store, out)
        case _:
            assert_never(spec)


def _detect(
    spec: DetectStage,
    inputs: Mapping[str, ArtifactRef],
    store: ArtifactStore,
    out: Path,
    resources: Resources,
    on_progress: OnProgress,
) -> dict[str, Any]:
    import torch

    from ssl_backdoor.detection.run import detect
    from ssl_backdoor.device import pick_device

    torch.set_num_threads(resources.threads)  # a search is many small steps, on which threads wait for each other
    dataset = open_dataset(store, inputs["dataset"])
    overlay = open_overlay(store, inputs["poison"]) if "poison" in inputs else None
    source = spec.trigger.read(_kept_trigger(store, inputs)) if spec.trigger else None
    device, model = str(pick_device(resources)), store.fetch(inputs["model"])
    siblings = [_score_of(store, ref) for role, ref in sorted(inputs.items()) if role.startswith(SIBLING)]
    return detect(
        spec.detector,
        dataset,
        overlay,
        model,
        spec.trigger,
        source,
        out,
        spec.seed,
        device,
        on_progress,
        siblings,
        spec.unseen_triggers,
    )


def _score_of(store: ArtifactStore, ref: ArtifactRef) -> float:
    """What a detector said of another encoder; not a number where it found nothing."""
    import pyarrow.parquet as pq

    (score,) = pq.read_table(store.fetch(ref, ["detections.parquet"]) / "detections.parquet")["score"].to_pylist()
    return float("nan") if score is None else float(score)


def _kept_trigger(store: ArtifactStore, inputs: Mapping[str, ArtifactRef]) -> Path | None:
    """The copy of an image trigger's file that lies with the poison."""
    return store.fetch(inputs["trigger"], ["trigger.png"]) / "trigger.png" if "trigger" in inputs else None


def _evaluate(
    spec: EvaluateStage,
    inputs: Mapping[str, ArtifactRef],
    store: ArtifactStore,
    out: Path,
    resources: Resources,
    on_progress: OnProgress,
) -> dict[str, Any]:
    from ssl_backdoor.device import pick_device
    from ssl_backdoor.evaluate.evaluate import evaluate

    dataset = open_dataset(store, inputs["dataset"])
    if spec.target_class and spec.target_class not in dataset.classes:
        raise SpecError(f"target_class {spec.target_class!r} is not one of the classes {', '.join(dataset.classes)}")
    return evaluate(
        spec.evaluation,
        dataset,
        store.fetch(inputs["model"], _model_files(spec.evaluation, store.manifest(inputs["model"]).files)),
        trigger=spec.trigger,
        trigger_file=store.fetch(inputs["poison"], ["trigger.png"]) / "trigger.png" if "poison" in inputs else None,
        target_label=dataset.classes.index(spec.target_class) if spec.target_class else None,
        out=out,
        seed=spec.seed,
        targets=spec.targets,
        on_progress=on_progress,
        device=str(pick_device(resources)),
    )


def _model_files(evaluation: EvaluationSpec, held: Container[str]) -> list[str]:
    """What a model's evaluation reads of it; where there is no text tower, evaluate() says so."""
    text = ("text.safetensors", "text.json") if any(probe.needs_text_tower for probe in evaluation.probes) else ()
    return ["backbone.safetensors", "backbone.json", *(name for name in text if name in held)]
