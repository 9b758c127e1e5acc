"""Every stage that a recipe needs, stated and not done: of which kind it is, and how much work."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, assert_never, final

from typing_extensions import override  # of typing itself from Python 3.12 on

from flows.pipeline import numbered, state_runs
from ssl_backdoor.data.images import inspect
from ssl_backdoor.data.preview import Preview
from ssl_backdoor.defences.trusted import num_trusted
from ssl_backdoor.errors import SpecError
from ssl_backdoor.poison.attacks import num_planned
from ssl_backdoor.rehearsal import Defending, Evaluating, Ingesting, Judging, Kind, Poisoning, Training
from ssl_backdoor.specs import (
    AttackSpec,
    BackboneSpec,
    BYOLSpec,
    DatasetSpec,
    FitSpec,
    Repair,
    ReportSpec,
    Resources,
    TargetsSpec,
    TrainSpec,
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
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from tasks.verbs import Digest, Verbs

Look = Callable[[StageCall, DatasetSpec, ArtifactRef], Preview]
"""What the images of an ingest stage are."""


class Work(NamedTuple):
    """One stage: ``units`` of work of a kind."""

    call: StageCall
    kind: Kind | None
    """None: the report."""
    units: int


@final
class _Notes(Verbs):
    """Writes down what is stated."""

    def __init__(self, store: ArtifactStore, digest: Digest, *sources: str | None) -> None:
        super().__init__(digest, *sources)
        self._store = store
        self.calls: dict[ArtifactRef, StageCall] = {}

    @override
    def state(self, call: StageCall) -> ArtifactRef:
        ref = self._store.ref(call.stage, call.key)
        self.calls.setdefault(ref, call)
        return ref


def stated(
    report: ReportSpec,
    store: ArtifactStore,
    digest: Digest,
    data: str | None = None,
    probe_data: str | None = None,
    test_data: str | None = None,
) -> dict[ArtifactRef, StageCall]:
    """Each stage of ``report`` once, in the order in which a flow states them.

    Raises:
        DataError: the data are not there.
        SpecError: data that are needed were not named.
    """
    notes = _Notes(store, digest, data, probe_data, test_data)
    notes.report(report, numbered(state_runs(notes, report.runs)))
    return notes.calls


class Census:
    """The work of each of ``calls``; ``look`` is asked once for each dataset."""

    def __init__(self, calls: Mapping[ArtifactRef, StageCall], look: Look) -> None:
        self._calls, self._look = calls, look
        self.previews: dict[ArtifactRef, Preview] = {}
        self._frames: dict[ArtifactRef, DatasetSpec] = {}
        self._alike: dict[BackboneSpec, TrainSpec] = {}
        self.work = {ref: self._work(call, ref) for ref, call in calls.items()}

    def shown(self, frame: DatasetSpec) -> Preview:
        """Images in ``frame``, of the first dataset that has some."""
        return next(self.previews[ref] for ref, one in self._frames.items() if one == frame)

    def _work(self, call: StageCall, ref: ArtifactRef) -> Work:
        match call.spec:
            case IngestStage(dataset=dataset):
                self._frames[ref], self.previews[ref] = _framed(dataset), self._look(call, dataset, ref)
                return Work(
                    call, Ingesting(self._frames[ref]), self.previews[ref].num_train + self.previews[ref].num_test
                )
            case PoisonStage(attack=attack):
                images = self.previews[call.inputs["dataset"]]
                units = num_planned(attack, images.classes, images.train_per_class, images.num_train)
                return Work(call, Poisoning(_like(attack), self._frame(call)), units)
            case TrainStage(train=train):
                steps = _steps(train.fit, self._num_images(call), call.title)
                self._alike.setdefault(train.backbone, train)
                return Work(call, Training(train, self._frame(call), self._is_streamed(call)), steps)
            case DefendStage(defence=Repair() as defence) if defence.fit is not None:
                images = self.previews[call.inputs["dataset"]]
                groups = [count for count in (*images.train_per_class, images.num_unlabelled) if count]
                trusted = sum(num_trusted(count, defence.trusted_fraction) for count in groups)
                encoder, is_streamed = self._encoder(call, "suspect"), self._is_streamed(call)
                kind = Defending(defence, defence.fit, encoder, self._frame(call), is_streamed)
                return Work(call, kind, _steps(defence.fit, trusted, call.title))
            case FilterStage() | TamperStage() | DefendStage() | DetectStage():
                return self._judgement(call, call.spec)
            case EvaluateStage():
                return self._evaluation(call, call.spec)
            case ReportSpec():
                return Work(call, None, sum(role.endswith("/scores") for role in call.inputs))
            case _:
                assert_never(call.spec)

    def _judgement(self, call: StageCall, spec: FilterStage | TamperStage | DefendStage | DetectStage) -> Work:
        role = next((role for role in ("model", "suspect") if role in call.inputs), "")
        train = self._encoder(call, role) if role else TrainSpec(method=BYOLSpec())
        kind = Judging(spec.model_copy(update={"seed": 0}), role, train, self._frame(call))
        images = self.previews[call.inputs["dataset"]]
        is_of_inputs = isinstance(spec, DetectStage) and spec.detector.level != "sample"
        return Work(call, kind, images.num_test if is_of_inputs else self._num_images(call))

    def _evaluation(self, call: StageCall, spec: EvaluateStage) -> Work:
        images, evaluation = self.previews[call.inputs["dataset"]], spec.evaluation
        # The stamp's pixels cost nothing, its size does; and it must not be the one of the in-model control.
        trigger = spec.trigger and spec.trigger.unseen(evaluation.unseen_trigger_seed + 1)
        targets = TargetsSpec() if spec.targets else None
        kind = Evaluating(evaluation, trigger, targets, self._encoder(call, "model"), self._frame(call))
        return Work(call, kind, kind.num_scored(sum(images.train_per_class), images.num_test))

    def _encoder(self, call: StageCall, role: str) -> TrainSpec:
        """Of the encoder that ``call`` works on: a training of the same architecture, the first that was stated."""
        made = self._calls[call.inputs[role]]
        if isinstance(made.spec, TrainStage):
            return self._alike.setdefault(made.spec.train.backbone, made.spec.train)
        return self._encoder(made, "suspect" if "suspect" in made.inputs else "model")

    def _frame(self, call: StageCall) -> DatasetSpec:
        return self._frames[call.inputs["dataset"]]

    def _num_images(self, call: StageCall) -> int:
        """Images of a training: those of the dataset and those that the poison adds."""
        num_images = self.previews[call.inputs["dataset"]].num_train
        match self._calls[call.inputs["poison"]].spec if "poison" in call.inputs else None:
            case PoisonStage(attack=attack) if attack.adds_pairs:
                return num_images + num_planned(attack, (), (), num_images)
        return num_images

    def _is_streamed(self, call: StageCall) -> bool:
        frame, images = self._frame(call), self.previews[call.inputs["dataset"]]
        side_px = frame.frame_px or frame.resident_px
        header = inspect(images.images[0], frame.max_image_pixels)
        pixels = side_px**2 or header.width * header.height
        return 3 * pixels * images.num_train > Resources().max_resident_bytes


def _framed(dataset: DatasetSpec) -> DatasetSpec:
    """What of a dataset matters for the cost of one of its images."""
    names = ("frame_px", "resident_px", "max_rejected_frac", "max_image_pixels")
    return DatasetSpec(**{name: getattr(dataset, name) for name in names})


def _steps(fit: FitSpec, num_images: int, title: str) -> int:
    if num_images < fit.batch_size:
        raise SpecError(
            f"{title}: one batch needs {fit.batch_size} images, but there are only {num_images}; "
            "lower batch_size or bring more images"
        )
    return fit.epochs * (num_images // fit.batch_size)


def _like(attack: AttackSpec) -> AttackSpec:
    """``attack`` without its amounts and without what tells pairs apart."""
    like = attack.largest("", 1)
    return like.model_copy(update={"trigger": like.trigger.unseen(0)}) if like.trigger is not None else like
