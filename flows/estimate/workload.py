"""Every stage that a recipe needs: its kind, and how much work it is."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, assert_never

from ssl_backdoor.data.counts import Counts
from ssl_backdoor.data.images import inspect
from ssl_backdoor.defences.trusted import num_trusted
from ssl_backdoor.errors import SpecError
from ssl_backdoor.estimate.cost_model import (
    DefendKind,
    EvaluateKind,
    IngestKind,
    JudgeKind,
    PoisonKind,
    StageKind,
    TrainKind,
)
from ssl_backdoor.estimate.preview import Preview
from ssl_backdoor.poison.attacks import num_planned
from ssl_backdoor.specs import (
    AttackSpec,
    BackboneSpec,
    BYOLSpec,
    DatasetSpec,
    FitSpec,
    Repair,
    ReportSpec,
    Resources,
    TamperAttack,
    TargetsSpec,
    TrainSpec,
    Trigger,
)
from ssl_backdoor.stages import (
    DefendStage,
    DetectStage,
    EvaluateStage,
    FilterStage,
    IngestStage,
    PoisonStage,
    StageCall,
    TamperStage,
    TrainStage,
)
from ssl_backdoor.store import ArtifactRef

PreviewDataset = Callable[[StageCall, DatasetSpec, ArtifactRef], Preview]
"""The images of an ingest stage."""


class StageWork(NamedTuple):
    """One stage: ``units`` of work of a kind."""

    call: StageCall
    kind: StageKind | None
    """None: the report."""
    units: int


class Workload:
    """The work of each of ``calls``; ``preview_dataset`` is called once for each dataset."""

    def __init__(self, calls: Mapping[ArtifactRef, StageCall], preview_dataset: PreviewDataset) -> None:
        self._calls, self._preview_dataset = calls, preview_dataset
        self.previews: dict[ArtifactRef, Preview] = {}
        self._frames: dict[ArtifactRef, DatasetSpec] = {}
        self._same_backbone: dict[BackboneSpec, TrainSpec] = {}
        self.stages = {ref: self._work(call, ref) for ref, call in calls.items()}

    def sample(self, frame: DatasetSpec) -> Preview:
        """Preview of the first dataset in ``frame``."""
        return next(self.previews[ref] for ref, other in self._frames.items() if other == frame)

    def _work(self, call: StageCall, ref: ArtifactRef) -> StageWork:
        match call.spec:
            case IngestStage(dataset=dataset):
                self._frames[ref], self.previews[ref] = _cost_frame(dataset), self._preview_dataset(call, dataset, ref)
                counts = self.previews[ref].counts
                return StageWork(call, IngestKind(self._frames[ref]), counts.num_train + counts.num_test)
            case PoisonStage(attack=attack):
                images = self._counts(call)
                units = num_planned(attack, images.classes, images.train_per_class, images.num_train)
                return StageWork(call, PoisonKind(_cost_attack(attack), self._frame(call)), units)
            case TrainStage(train=train):
                steps = _num_steps(train.fit, self._num_images(call), call.title)
                self._same_backbone.setdefault(train.backbone, train)
                return StageWork(call, TrainKind(train, self._frame(call), self._is_streamed(call)), steps)
            case DefendStage(defence=Repair() as defence) if defence.fit is not None:
                images = self._counts(call)
                groups = [count for count in (*images.train_per_class, images.num_unlabelled) if count]
                trusted = sum(num_trusted(count, defence.trusted_fraction) for count in groups)
                encoder, is_streamed = self._encoder(call, "suspect"), self._is_streamed(call)
                kind = DefendKind(defence, defence.fit, encoder, self._frame(call), is_streamed)
                return StageWork(call, kind, _num_steps(defence.fit, trusted, call.title))
            case FilterStage() | TamperStage() | DefendStage() | DetectStage():
                return self._judge_work(call, call.spec)
            case EvaluateStage():
                return self._evaluation_work(call, call.spec)
            case ReportSpec():
                return StageWork(call, None, sum(role.endswith("/scores") for role in call.inputs))
            case _:
                assert_never(call.spec)

    def _judge_work(self, call: StageCall, spec: FilterStage | TamperStage | DefendStage | DetectStage) -> StageWork:
        role = next((role for role in ("model", "suspect") if role in call.inputs), "")
        train = self._encoder(call, role) if role else TrainSpec(method=BYOLSpec())
        kind = JudgeKind(spec.model_copy(update={"seed": 0}), role, train, self._frame(call))
        images = self._counts(call)
        is_of_inputs = isinstance(spec, DetectStage) and spec.detector.level != "sample"
        units = images.num_test if is_of_inputs else self._num_images(call)
        if isinstance(spec, TamperStage) and isinstance(spec.attack, TamperAttack):
            units = spec.attack.num_seen(units)
        return StageWork(call, kind, math.ceil(kind.work(units)))

    def _evaluation_work(self, call: StageCall, spec: EvaluateStage) -> StageWork:
        images, evaluation = self._counts(call), spec.evaluation
        trigger = spec.trigger and _cost_trigger(spec.trigger)
        targets = TargetsSpec() if spec.targets else None
        kind = EvaluateKind(evaluation, trigger, targets, self._encoder(call, "model"), self._frame(call))
        return StageWork(call, kind, kind.num_scored(sum(images.train_per_class), images.num_test))

    def _encoder(self, call: StageCall, role: str) -> TrainSpec:
        """The training of the encoder that ``call`` works on, or the first of the same architecture."""
        made = self._calls[call.inputs[role]]
        if isinstance(made.spec, TrainStage):
            return self._same_backbone.setdefault(made.spec.train.backbone, made.spec.train)
        return self._encoder(made, "suspect" if "suspect" in made.inputs else "model")

    def _frame(self, call: StageCall) -> DatasetSpec:
        return self._frames[call.inputs["dataset"]]

    def _counts(self, call: StageCall) -> Counts:
        return self.previews[call.inputs["dataset"]].counts

    def _num_images(self, call: StageCall) -> int:
        """Training images, with those that the poison adds."""
        num_images = self._counts(call).num_train
        match self._calls[call.inputs["poison"]].spec if "poison" in call.inputs else None:
            case PoisonStage(attack=attack) if attack.adds_pairs or attack.adds_images:
                return num_images + num_planned(attack, (), (), num_images)
        return num_images

    def _is_streamed(self, call: StageCall) -> bool:
        frame, images = self._frame(call), self.previews[call.inputs["dataset"]]
        side_px = frame.frame_px or frame.resident_px
        header = inspect(images.images[0], frame.max_image_pixels)
        pixels = side_px**2 or header.width * header.height
        return 3 * pixels * images.counts.num_train > Resources().max_resident_bytes


def _cost_frame(dataset: DatasetSpec) -> DatasetSpec:
    """The fields of ``dataset`` that determine the cost of one image."""
    names = ("frame_px", "resident_px", "resident_filter", "max_rejected_frac", "max_image_pixels")
    return DatasetSpec(**{name: getattr(dataset, name) for name in names})


def _num_steps(fit: FitSpec, num_images: int, title: str) -> int:
    if shortage := fit.shortage(num_images):
        raise SpecError(f"{title}: {shortage}")
    return fit.epochs * (num_images // fit.batch_size)


def _cost_attack(attack: AttackSpec) -> AttackSpec:
    """``attack`` with the fields alone that determine the cost of one poison."""
    like = attack.largest("", 1)
    return like.model_copy(update={"trigger": _cost_trigger(like.trigger)}) if like.trigger is not None else like


def _cost_trigger(trigger: Trigger) -> Trigger:
    """One that costs as much: the stamp's pixels cost nothing, its size does."""
    return trigger.unseen(0) or trigger
