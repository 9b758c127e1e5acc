"""A dress rehearsal: what each kind of stage takes on this machine, found by doing it in small.

``run_stage`` itself is timed, on a few of the real images, in a scratch store that is thrown away: what is measured is
what a run will do. A stage is taken to cost so much once and so much for each unit of its work. Threads, device and
priority are those of the process that rehearses, so that it should be where stages run.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple, assert_never, final

from ssl_backdoor.data.images import inspect
from ssl_backdoor.poison.attacks import num_planned
from ssl_backdoor.progress import Progress
from ssl_backdoor.specs import (
    AttackSpec,
    DatasetSpec,
    EvaluationSpec,
    FilesSourceSpec,
    FitSpec,
    Repair,
    Resources,
    TargetsSpec,
    TemplateCaptionsSpec,
    TrainSpec,
    TriggerSpec,
)
from ssl_backdoor.stages import (
    DefendStage,
    DetectStage,
    EvaluateStage,
    FilterStage,
    IngestStage,
    PoisonStage,
    StageCall,
    StageSpec,
    TamperStage,
    TrainStage,
    run_stage,
)
from ssl_backdoor.store import ArtifactRef, LocalStore
from ssl_backdoor.store.base import MANIFEST

MAX_CLASSES = 10
MOST_IMAGES = 1024  # of one split
_FEWEST_IMAGES = 64
_MOST_PIXELS = 2**24  # decoded, of one split
_PILOT_BATCH, _PILOT_PIXELS = 16, 2**16  # whichever is fewer
_GROWTH = 8  # from one batch that is tried to the next
_FEWEST_STEPS, _MOST_STEPS = 3, 240
_PATIENCE = 4.0  # so much longer than meant it may take where that saves the true batch size


class Ingesting(NamedTuple):
    """A unit is an image that is kept; reading it from its source comes on top."""

    frame: DatasetSpec


class Poisoning(NamedTuple):
    """A unit is a row of the plan."""

    attack: AttackSpec
    frame: DatasetSpec


class Training(NamedTuple):
    """A unit is a step."""

    train: TrainSpec
    frame: DatasetSpec
    is_streamed: bool
    """Images are decoded as steps need them, not held."""


class Defending(NamedTuple):
    """A unit is a step."""

    defence: Repair
    fit: FitSpec
    """Its own."""
    train: TrainSpec
    """Of the suspect."""
    frame: DatasetSpec
    is_streamed: bool


class Evaluating(NamedTuple):
    """A unit is an image that is scored: ``num_scored``."""

    evaluation: EvaluationSpec
    trigger: TriggerSpec | None
    targets: TargetsSpec | None
    train: TrainSpec
    """Of any encoder of the same architecture."""
    frame: DatasetSpec

    def num_scored(self, num_train: int, num_test: int) -> int:
        """Training images where a probe learns, and test images under each condition."""
        learns = any(probe.learns for probe in self.evaluation.probes)
        return num_train * learns + num_test * (1 if self.trigger is None else 3)


class Judging(NamedTuple):
    """A filter, a detector, an attack on the encoder or a repair without a ``fit``: a unit is an image."""

    spec: FilterStage | TamperStage | DefendStage | DetectStage
    role: str
    """Of the encoder among its inputs; empty where it needs none."""
    train: TrainSpec
    """Of any encoder of the same architecture."""
    frame: DatasetSpec


Kind = Ingesting | Poisoning | Training | Defending | Evaluating | Judging
"""Stages of one kind differ only in how many units of work they are."""


class Line(NamedTuple):
    """``once``, and ``each`` for every unit."""

    once: float
    each: float

    def at(self, units: float) -> float:
        """The value at so many units."""
        return self.once + self.each * units


class Pace(NamedTuple):
    """What a stage of a kind takes by its units."""

    seconds: Line
    files: Mapping[str, Line]
    """Bytes of each file of its artifact, the manifest too."""
    note: str = ""
    """What was not as it will be, if anything."""
    cpu_frac: float = 1.0
    """CPU seconds over seconds. Where a stage computes on the CPU the rest went to others."""


class _Watch:
    """Hears of a stage's progress: when the first and the last word came, by unit."""

    def __init__(self) -> None:
        self._heard: dict[str, list[tuple[float, int]]] = {}

    def __call__(self, progress: Progress) -> None:
        self._heard.setdefault(progress.unit, []).append((time.perf_counter(), progress.done))

    def seconds_each(self, unit: str) -> float:
        """Of a unit, between the first word and the last; 0 where there are not two."""
        (began_s, first), (ended_s, last) = (self._heard.get(unit, [(0.0, 0)])[index] for index in (0, -1))
        return (ended_s - began_s) / (last - first) if last > first else 0.0


class _Done(NamedTuple):
    ref: ArtifactRef
    seconds: float
    cpu_frac: float
    files: dict[str, int]
    watch: _Watch


@final
class Rehearsal:
    """One scratch store, in ``folder``; what several kinds need (images, a trained encoder) is made once."""

    def __init__(
        self, folder: Path, images: Sequence[bytes], num_classes: int, seconds: float, resources: Resources
    ) -> None:
        """``seconds`` is what one kind may take, about. The ``images`` stand for all, repeated as needed."""
        self._folder = folder
        self._images = images
        self._classes = [f"kind_{chr(ord('a') + index)}" for index in range(min(max(2, num_classes), MAX_CLASSES))]
        self._seconds = seconds
        self._resources = resources
        self._store = LocalStore(folder / "store")
        self._datasets: dict[tuple[DatasetSpec, int], _Done] = {}
        self._models: dict[TrainSpec, ArtifactRef] = {}
        self._seeds = count()

    def pace(self, kind: Kind) -> Pace:
        """What stages of ``kind`` take.

        Raises:
            SslBackdoorError: what a stage raised, as a run's would.
        """
        match kind:
            case Ingesting():
                small, large = self._sizes(kind.frame)
                _, *done = (self._dataset(kind.frame, size) for size in (_FEWEST_IMAGES // 2, small, large))
                return _through(2 * small, done[0], 2 * large, done[1])
            case Poisoning():
                return self._poisoning(kind)
            case Training():
                return self._fitting(kind, kind.train.fit, lambda fit: self._train(kind.train, fit), {})
            case Defending():
                return self._defending(kind)
            case Evaluating():
                return self._evaluating(kind)
            case Judging():
                return self._judging(kind)
            case _:
                assert_never(kind)

    def _poisoning(self, kind: Poisoning) -> Pace:
        rows, done = [], []
        for size in (_FEWEST_IMAGES, *self._sizes(kind.frame)):
            per_class = [len(range(index, size, len(self._classes))) for index in range(len(self._classes))]
            attack = kind.attack.largest(self._classes[0], size // 4)
            rows.append(num_planned(attack, self._classes, per_class, size))
            stage = PoisonStage(attack=attack, seed=next(self._seeds))
            done.append(self._do(stage, {"dataset": self._dataset(kind.frame, size).ref}))
        return _through(rows[1], done[1], rows[2], done[2])

    def _defending(self, kind: Defending) -> Pace:
        defence = kind.defence.model_copy(update={"trusted_fraction": 1.0})

        def stage(fit: FitSpec) -> DefendStage:
            return DefendStage(defence=defence.model_copy(update={"fit": fit}), seed=next(self._seeds))

        return self._fitting(kind, kind.fit, stage, {"suspect": self._model(kind.train, kind.frame)})

    def _evaluating(self, kind: Evaluating) -> Pace:
        model, done = self._model(kind.train, kind.frame), []
        small, large = self._sizes(kind.frame)
        for size in (_FEWEST_IMAGES, small, large):
            stage = EvaluateStage(
                evaluation=kind.evaluation,
                trigger=kind.trigger,
                target_class=self._classes[0] if kind.trigger is not None else "",
                targets=kind.targets,
                seed=next(self._seeds),
            )
            done.append(self._do(stage, {"dataset": self._dataset(kind.frame, size).ref, "model": model}))
        return _through(kind.num_scored(small, small), done[1], kind.num_scored(large, large), done[2])

    def _judging(self, kind: Judging) -> Pace:
        inputs, done = {kind.role: self._model(kind.train, kind.frame)} if kind.role else {}, []
        small, large = self._sizes(kind.frame)
        for size in (_FEWEST_IMAGES, small, large):
            spec = kind.spec.model_copy(update={"seed": next(self._seeds)})
            done.append(self._do(spec, {"dataset": self._dataset(kind.frame, size).ref, **inputs}))
        return _through(small, done[1], large, done[2])

    def _model(self, train: TrainSpec, frame: DatasetSpec) -> ArtifactRef:
        """An encoder of the architecture that ``train`` has, hardly trained."""
        if train not in self._models:
            fit, size = _shortened(train.fit, _pilot_batch(train.fit), _FEWEST_STEPS, _FEWEST_IMAGES)
            images = self._dataset(frame, size).ref
            self._models[train] = self._do(self._train(train, fit), {"dataset": images}).ref
        return self._models[train]

    def _train(self, train: TrainSpec, fit: FitSpec) -> TrainStage:
        return TrainStage(train=train.model_copy(update={"fit": fit}), seed=next(self._seeds))

    def _fitting(
        self,
        kind: Training | Defending,
        fit: FitSpec,
        stage: Callable[[FitSpec], TrainStage] | Callable[[FitSpec], DefendStage],
        inputs: Mapping[str, ArtifactRef],
    ) -> Pace:
        """A few steps of a small batch, then of larger ones while there is time for them; then more of the last."""

        def do(batch: int, steps: int) -> tuple[_Done, FitSpec, int]:
            shortened, size = _shortened(fit, batch, steps, self._sizes(kind.frame)[1])
            images = self._dataset(kind.frame, size).ref
            return self._do(stage(shortened), {"dataset": images, **inputs}, kind.is_streamed), shortened, size

        batch = _pilot_batch(fit)
        while True:
            step_s = do(batch, _FEWEST_STEPS)[0].watch.seconds_each("steps")
            affordable = int(_PATIENCE * self._seconds / (_FEWEST_STEPS * max(1e-9, step_s)) * batch)
            larger = _whole(fit, min(fit.batch_size, _GROWTH * batch, affordable))
            if larger <= batch:
                break
            batch = larger
        steps = min(_MOST_STEPS, max(_FEWEST_STEPS, int(self._seconds / max(1e-9, step_s))))
        done, shortened, size = do(batch, steps)
        step_s, load_s = done.watch.seconds_each("steps"), done.watch.seconds_each("images")
        once_s = done.seconds - shortened.epochs * (size // batch) * step_s - size * load_s
        # Each image is loaded once, and trained on ``epochs`` times.
        each_s = step_s * fit.batch_size / batch + fit.batch_size * load_s / fit.epochs
        note = "" if batch == fit.batch_size else f"measured in batches of {batch}, not of {fit.batch_size}"
        files = {name: Line(num_bytes, 0.0) for name, num_bytes in done.files.items()}
        return Pace(Line(max(0.0, once_s), each_s), files, note, done.cpu_frac)

    def _sizes(self, frame: DatasetSpec) -> tuple[int, int]:
        """Images of one split: few, and three times as many."""
        header = inspect(self._images[0], frame.max_image_pixels)
        most = min(MOST_IMAGES, max(_FEWEST_IMAGES, _MOST_PIXELS // (header.width * header.height)))
        return most // 3, most

    def _dataset(self, frame: DatasetSpec, num_images: int) -> _Done:
        """``num_images`` of each split."""
        if (frame, num_images) not in self._datasets:
            folder = self._folder / f"{len(self._datasets)}"
            for split in ("train", "test"):
                for index in range(num_images):
                    file = folder / split / self._classes[index % len(self._classes)] / f"{index:05d}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(self._images[index % len(self._images)])
            own = {"source": FilesSourceSpec(layout="folder"), "captions": TemplateCaptionsSpec()}
            stage = IngestStage(dataset=frame.model_copy(update=own))
            self._datasets[frame, num_images] = self._do(stage, {}, data=folder)
        return self._datasets[frame, num_images]

    def _do(
        self, stage: StageSpec, inputs: Mapping[str, ArtifactRef], is_streamed: bool = False, data: Path | None = None
    ) -> _Done:
        call = StageCall(stage, inputs, source=data.name if data else "", data=str(data) if data else None)
        resources = self._resources.model_copy(update={"max_resident_bytes": 0}) if is_streamed else self._resources
        watch, began_s, began_cpu_s = _Watch(), time.perf_counter(), time.process_time()
        ref = run_stage(call, self._store, resources, watch).ref
        seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        manifest = self._store.manifest(ref)
        files = {name: one.bytes for name, one in manifest.files.items()}
        files[MANIFEST] = len(manifest.model_dump_json(indent=1))
        return _Done(ref, seconds, min(1.0, cpu_s / seconds), files, watch)


def _through(few: float, small: _Done, many: float, large: _Done) -> Pace:
    """The lines through two sizes of the same work; noise that would make more cost less is taken for no growth.

    Neither may be the first of its kind in this process, which pays for imports.
    """

    def line(first: float, second: float) -> Line:
        each = max(0.0, second - first) / (many - few) if many > few else 0.0
        return Line(max(0.0, second - each * many), each)

    files = {name: line(small.files.get(name, 0), size) for name, size in large.files.items()}
    return Pace(line(small.seconds, large.seconds), files, cpu_frac=large.cpu_frac)


def _whole(fit: FitSpec, batch_size: int) -> int:
    """At most so many images, in whole BatchNorm groups of two or more."""
    return max(2 * fit.bn_groups, batch_size // fit.bn_groups * fit.bn_groups)


def _pilot_batch(fit: FitSpec) -> int:
    return _whole(fit, min(fit.batch_size, _PILOT_BATCH, _PILOT_PIXELS // fit.views.size_px**2))


def _shortened(fit: FitSpec, batch_size: int, steps: int, most_images: int) -> tuple[FitSpec, int]:
    """``fit`` of so many steps or a few more, and the training images for it: ``most_images``, or one batch."""
    per_epoch = max(1, min(steps, most_images // batch_size))
    return fit.model_copy(update={"batch_size": batch_size, "epochs": -(-steps // per_epoch)}), per_epoch * batch_size
