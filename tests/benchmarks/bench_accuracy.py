"""Clean accuracy of our MoCo v2, BYOL and SimCLR beside lightly's own classes under lightly's recipe, at equal epochs.

    python -m tests.benchmarks.bench_accuracy --data CIFAR10 [--quick] [--out FOLDER]

Equal: encoder (ResNet-8, width 16), data (five classes of CIFAR-10 at 16 px), epochs, batch, optimiser, schedule, one
thread and the probe (kNN on 5,000 clean test images). Ours: the mini recipes. A repetition is a seed; the encoder of a
seed starts from the same weights on both sides. The images/s of the same trainings stand beside, wall-clock.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor, nn

from flows.recipes import ssl
from ssl_backdoor.data.ingest import source_digest
from ssl_backdoor.data.resident import Resident, load_resident
from ssl_backdoor.data.stored import open_dataset
from ssl_backdoor.data.views import evaluation_view
from ssl_backdoor.evaluate import probes
from ssl_backdoor.specs import Resources, ScenesSourceSpec, TrainSpec
from ssl_backdoor.stages import IngestStage, StageCall, run_stage
from ssl_backdoor.store import open_store
from ssl_backdoor.train.checkpoint import load_backbone
from ssl_backdoor.train.pretrain import train_backbone
from ssl_backdoor.train.training_set import TrainingSet
from tests.benchmarks import lightly_side
from tests.benchmarks.harness import Comparison, Options, main

SEEDS = 3


def train_ours(spec: TrainSpec, images: Tensor, seed: int) -> nn.Module:
    """The mini recipe, through the project's loop."""
    with tempfile.TemporaryDirectory() as folder:
        train_backbone(
            lambda replicas, _: spec.method.build(spec, seed, replicas),
            TrainingSet(images),
            spec.fit,
            Path(folder),
            seed,
            Resources(device="cpu"),
            views=spec.method.views(spec.fit.views),
        )
        return load_backbone(Path(folder))


def knn_percent(backbone: nn.Module, train: Resident, test: Resident) -> float:
    """Share of the clean test images that 20 neighbours name rightly."""

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return torch.cat([backbone(evaluation_view(part)) for part in images.split(500)])

    backbone.eval()
    classes = int(train.labels.max()) + 1
    scores = probes.knn(features(train.images), train.labels, classes, 20)
    return 100 * float((probes.predict(scores, features(test.images), classes) == test.labels).float().mean())


def held(data: str | None, folder: str) -> tuple[Resident, Resident]:
    """Both splits in memory, at 16 px."""
    spec = ssl.MINI.dataset
    if data is None:
        scenes = ScenesSourceSpec(train_per_class=100, test_per_class=50)
        spec = spec.model_copy(update={"source": scenes, "classes": ()})
    store = open_store(folder)
    call = StageCall(IngestStage(dataset=spec), source=source_digest(spec, data), data=data)
    dataset = open_dataset(store, run_stage(call, store).ref)
    return load_resident(dataset, "train"), load_resident(dataset, "test")


def said(gaps: list[float]) -> str:
    """The difference in points with its 95 % t interval over seeds."""
    mean = sum(gaps) / len(gaps)
    if len(gaps) == 1:
        return f"{mean:+.1f} points, one seed"
    half = stats.t.ppf(0.975, len(gaps) - 1) * stats.tstd(gaps) / len(gaps) ** 0.5
    return f"ours minus lightly's {mean:+.1f} points ({mean - half:+.1f} to {mean + half:+.1f}, {len(gaps)} seeds)"


def run(options: Options) -> Iterator[Comparison]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        train, test = held(options.data, folder)
    for label in lightly_side.THEIRS:
        spec = ssl.MINI.methods[label]
        if options.quick:
            spec = spec.model_copy(update={"fit": spec.fit.model_copy(update={"epochs": 1})})
        sides: dict[str, Callable[[int], nn.Module]] = {
            "ours": lambda seed, spec=spec: train_ours(spec, train.images, seed),
            "lightly": lambda seed, spec=spec, label=label: lightly_side.train(label, spec, train.images, seed),
        }
        accuracy: dict[str, list[float]] = {side: [] for side in sides}
        rate: dict[str, list[float]] = {side: [] for side in sides}
        for seed in range(1 if options.quick else SEEDS):
            for side, make in sides.items():
                started = time.perf_counter()
                backbone = make(seed)
                rate[side].append(len(train.images) * spec.fit.epochs / (time.perf_counter() - started))
                accuracy[side].append(knn_percent(backbone, train, test))
        gaps = [ours - theirs for ours, theirs in zip(accuracy["ours"], accuracy["lightly"], strict=True)]
        case = f"{label}, {spec.fit.epochs} epochs"
        yield Comparison(f"{case}: kNN accuracy", "%", accuracy, note=said(gaps))
        yield Comparison(f"{case}: whole training", "images/s", rate)


if __name__ == "__main__":
    main(run, __doc__)
