"""Cost models of stages on this machine, calibrated by running each kind of stage on a small amount of work.

``run_stage`` itself is timed, on a few of the real images, in a temporary store. Threads, device and priority are those
of the calibrating process, so it should run where stages run.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple, assert_never, final

from ssl_backdoor.data.images import inspect
from ssl_backdoor.estimate.cost_model import (
    CostModel,
    DefendKind,
    EvaluateKind,
    IngestKind,
    JudgeKind,
    LinearCost,
    PoisonKind,
    StageKind,
    TrainKind,
)
from ssl_backdoor.poison.attacks import num_planned
from ssl_backdoor.progress import Progress
from ssl_backdoor.specs import (
    DatasetSpec,
    FilesSourceSpec,
    FitSpec,
    Resources,
    TamperAttack,
    TemplateCaptionsSpec,
    TrainSpec,
)
from ssl_backdoor.stages import (
    DefendStage,
    DetectStage,
    EvaluateStage,
    IngestStage,
    PoisonStage,
    StageCall,
    StageSpec,
    TamperStage,
    TrainStage,
    run_stage,
)
from ssl_backdoor.store import ArtifactRef, LocalStore

MAX_CLASSES = 10
MAX_IMAGES = 1024  # of one split
_MIN_IMAGES = 64
_MAX_PIXELS = 2**24  # decoded, of one split
_PILOT_BATCH, _PILOT_PIXELS = 16, 2**16  # whichever is fewer
_BATCH_GROWTH = 8
_MIN_STEPS, _MAX_STEPS = 3, 240
_OVERTIME = 4.0  # by which the time limit may be exceeded where that allows the true batch size


class _ProgressTimer:
    """Times of a stage's first and last progress report, by unit."""

    def __init__(self) -> None:
        self._reports: dict[str, list[tuple[float, int]]] = {}

    def __call__(self, progress: Progress) -> None:
        self._reports.setdefault(progress.unit, []).append((time.perf_counter(), progress.done))

    def seconds_per(self, unit: str) -> float:
        """Between the first report and the last; 0 where there are not two."""
        (began_s, first), (ended_s, last) = (self._reports.get(unit, [(0.0, 0)])[index] for index in (0, -1))
        return (ended_s - began_s) / (last - first) if last > first else 0.0


class _TimedStage(NamedTuple):
    ref: ArtifactRef
    seconds: float
    cpu_frac: float
    num_bytes: int
    timer: _ProgressTimer


@final
class Calibrator:
    """Works in ``folder``, in one store; what several kinds need (images, a trained encoder) is made once."""

    def __init__(
        self, folder: Path, images: Sequence[bytes], num_classes: int, seconds: float, resources: Resources
    ) -> None:
        """``seconds`` is about what one kind may take. The ``images`` are a sample, repeated as needed."""
        self._folder = folder
        self._images = images
        self._classes = [f"class_{chr(ord('a') + index)}" for index in range(min(max(2, num_classes), MAX_CLASSES))]
        self._seconds = seconds
        self._resources = resources
        self._store = LocalStore(folder / "store")
        self._datasets: dict[tuple[DatasetSpec, int], _TimedStage] = {}
        self._models: dict[TrainSpec, ArtifactRef] = {}
        self._seeds = count()

    def cost_model(self, kind: StageKind) -> CostModel:
        """Measure what stages of ``kind`` take.

        Raises:
            SslBackdoorError: what a stage raised, as a run's would.
        """
        match kind:
            case IngestKind():
                small, large = self._sizes(kind.frame)
                _, *done = (self._dataset(kind.frame, size) for size in (_MIN_IMAGES // 2, small, large))
                return _model_through(2 * small, done[0], 2 * large, done[1])
            case PoisonKind():
                return self._poison_cost(kind)
            case TrainKind():
                return self._fit_cost(kind, kind.train.fit, lambda fit: self._train(kind.train, fit), {})
            case DefendKind():
                return self._defend_cost(kind)
            case EvaluateKind():
                return self._evaluate_cost(kind)
            case JudgeKind():
                return self._judge_cost(kind)
            case _:
                assert_never(kind)

    def _poison_cost(self, kind: PoisonKind) -> CostModel:
        rows, done = [], []
        for size in (_MIN_IMAGES, *self._sizes(kind.frame)):
            per_class = [len(range(index, size, len(self._classes))) for index in range(len(self._classes))]
            attack = kind.attack.largest(self._classes[0], size // 4)
            rows.append(num_planned(attack, self._classes, per_class, size))
            stage = PoisonStage(attack=attack, seed=next(self._seeds))
            done.append(self._run(stage, {"dataset": self._dataset(kind.frame, size).ref}))
        return _model_through(rows[1], done[1], rows[2], done[2])

    def _defend_cost(self, kind: DefendKind) -> CostModel:
        defence = kind.defence.model_copy(update={"trusted_fraction": 1.0})

        def stage(fit: FitSpec) -> DefendStage:
            return DefendStage(defence=defence.model_copy(update={"fit": fit}), seed=next(self._seeds))

        return self._fit_cost(kind, kind.fit, stage, {"suspect": self._model(kind.train, kind.frame)})

    def _evaluate_cost(self, kind: EvaluateKind) -> CostModel:
        model, done = self._model(kind.train, kind.frame), []
        probes = tuple(one for one in kind.evaluation.probes if not one.trains_encoder) or kind.evaluation.probes
        left_out = [one.kind for one in kind.evaluation.probes if one not in probes]
        small, large = self._sizes(kind.frame)
        for size in (_MIN_IMAGES, small, large):
            stage = EvaluateStage(
                evaluation=kind.evaluation.model_copy(update={"probes": probes}),
                trigger=kind.trigger,
                target_class=self._classes[0] if kind.trigger is not None else "",
                targets=kind.targets,
                seed=next(self._seeds),
            )
            done.append(self._run(stage, {"dataset": self._dataset(kind.frame, size).ref, "model": model}))
        cost = _model_through(kind.num_scored(small, small), done[1], kind.num_scored(large, large), done[2])
        return (
            cost._replace(note=f"without the probe {', '.join(left_out)}, which trains encoders") if left_out else cost
        )

    def _judge_cost(self, kind: JudgeKind) -> CostModel:
        inputs, done = {kind.role: self._model(kind.train, kind.frame)} if kind.role else {}, []
        small, large = self._sizes(kind.frame)
        changes, factor = dict[str, object](), 1.0
        match kind.spec:
            case TamperStage(attack=TamperAttack() as attack):
                changes["attack"], factor = attack.largest(self._classes[0], 0).reduced
            case DetectStage(detector=detector):
                changes["detector"], factor = detector.reduced
        for size in (_MIN_IMAGES, small, large):
            spec = kind.fitted_to(size).model_copy(update={**changes, "seed": next(self._seeds)})
            done.append(self._run(spec, {"dataset": self._dataset(kind.frame, size).ref, **inputs}))
        cost = _model_through(kind.work(small), done[1], kind.work(large), done[2])
        return cost._replace(seconds=LinearCost(*(factor * part for part in cost.seconds)))

    def _model(self, train: TrainSpec, frame: DatasetSpec) -> ArtifactRef:
        """An encoder of the architecture of ``train``, trained for a few steps."""
        if train not in self._models:
            fit, size = _shorten(train.fit, _pilot_batch(train.fit), _MIN_STEPS, _MIN_IMAGES)
            images = self._dataset(frame, size).ref
            self._models[train] = self._run(self._train(train, fit), {"dataset": images}).ref
        return self._models[train]

    def _train(self, train: TrainSpec, fit: FitSpec) -> TrainStage:
        return TrainStage(train=train.model_copy(update={"fit": fit}), seed=next(self._seeds))

    def _fit_cost(
        self,
        kind: TrainKind | DefendKind,
        fit: FitSpec,
        stage: Callable[[FitSpec], TrainStage] | Callable[[FitSpec], DefendStage],
        inputs: Mapping[str, ArtifactRef],
    ) -> CostModel:
        """A few steps of a small batch, then of larger ones while there is time for them; then more of the last."""

        def do(batch: int, steps: int) -> tuple[_TimedStage, FitSpec, int]:
            shortened, size = _shorten(fit, batch, steps, self._sizes(kind.frame)[1])
            images = self._dataset(kind.frame, size).ref
            return self._run(stage(shortened), {"dataset": images, **inputs}, kind.is_streamed), shortened, size

        batch = _pilot_batch(fit)
        while True:
            step_s = do(batch, _MIN_STEPS)[0].timer.seconds_per("steps")
            affordable = int(_OVERTIME * self._seconds / (_MIN_STEPS * max(1e-9, step_s)) * batch)
            larger = _round_batch(fit, min(fit.batch_size, _BATCH_GROWTH * batch, affordable))
            if larger <= batch:
                break
            batch = larger
        steps = min(_MAX_STEPS, max(_MIN_STEPS, int(self._seconds / max(1e-9, step_s))))
        done, shortened, size = do(batch, steps)
        step_s, load_s = done.timer.seconds_per("steps"), done.timer.seconds_per("images")
        fixed_s = done.seconds - shortened.epochs * (size // batch) * step_s - size * load_s
        # Each image is loaded once, and trained on ``epochs`` times.
        per_step_s = step_s * fit.batch_size / batch + fit.batch_size * load_s / fit.epochs
        note = "" if batch == fit.batch_size else f"measured in batches of {batch}, not of {fit.batch_size}"
        seconds = LinearCost(max(0.0, fixed_s), per_step_s)
        return CostModel(seconds, LinearCost(done.num_bytes, 0.0), note, done.cpu_frac)

    def _sizes(self, frame: DatasetSpec) -> tuple[int, int]:
        """Images of one split: few, and three times as many."""
        header = inspect(self._images[0], frame.max_image_pixels)
        most = min(MAX_IMAGES, max(_MIN_IMAGES, _MAX_PIXELS // (header.width * header.height)))
        return most // 3, most

    def _dataset(self, frame: DatasetSpec, num_images: int) -> _TimedStage:
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
            self._datasets[frame, num_images] = self._run(stage, {}, data=folder)
        return self._datasets[frame, num_images]

    def _run(
        self, stage: StageSpec, inputs: Mapping[str, ArtifactRef], is_streamed: bool = False, data: Path | None = None
    ) -> _TimedStage:
        call = StageCall(stage, inputs, data=str(data) if data else None)
        resources = self._resources.model_copy(update={"max_resident_bytes": 0}) if is_streamed else self._resources
        timer, began_s, began_cpu_s = _ProgressTimer(), time.perf_counter(), time.process_time()
        ref = run_stage(call, self._store, resources, timer).ref
        seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        manifest = self._store.manifest(ref)
        num_bytes = len(manifest.model_dump_json(indent=1)) + sum(file.bytes for file in manifest.files.values())
        return _TimedStage(ref, seconds, min(1.0, cpu_s / seconds), num_bytes, timer)


def _model_through(few: float, small: _TimedStage, many: float, large: _TimedStage) -> CostModel:
    """Neither may be the first of its kind in this process, which pays for imports."""
    seconds = LinearCost.through(few, small.seconds, many, large.seconds)
    return CostModel(seconds, LinearCost.through(few, small.num_bytes, many, large.num_bytes), cpu_frac=large.cpu_frac)


def _round_batch(fit: FitSpec, batch_size: int) -> int:
    """At most so many images, in whole BatchNorm groups of two or more."""
    return max(2 * fit.bn_groups, batch_size // fit.bn_groups * fit.bn_groups)


def _pilot_batch(fit: FitSpec) -> int:
    return _round_batch(fit, min(fit.batch_size, _PILOT_BATCH, _PILOT_PIXELS // fit.views.size_px**2))


def _shorten(fit: FitSpec, batch_size: int, steps: int, most_images: int) -> tuple[FitSpec, int]:
    """``fit`` of so many steps or a few more, and the training images for it: ``most_images``, or one batch."""
    per_epoch = max(1, min(steps, most_images // batch_size))
    return fit.model_copy(update={"batch_size": batch_size, "epochs": -(-steps // per_epoch)}), per_epoch * batch_size
