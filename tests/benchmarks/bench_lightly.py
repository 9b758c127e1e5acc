"""Clean accuracy of our MoCo v2, BYOL and SimCLR beside lightly's own classes under lightly's recipe.

    python -m tests.benchmarks.bench_lightly --data PATH [--seeds N] [--quick] [--out results.json]

Equal: encoder (ResNet-8, width 16), data (five classes of CIFAR-10 at 16 px), epochs, batch, optimiser, schedule,
threads and the probe (kNN on 5,000 clean test images). Theirs: lightly's transforms (PIL, image by image; without blur,
as in its CIFAR-10 benchmark), heads, losses, memory bank and momentum update. Ours: the mini recipes. Differences are
paired by seed; the encoder of a seed starts from the same weights on both sides. Rates are wall-clock.
"""

import argparse
import copy
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch import Tensor, nn

from flows.recipes import ssl
from ssl_backdoor.data.ingest import source_digest
from ssl_backdoor.data.resident import Resident, load_resident
from ssl_backdoor.data.views import IMAGENET_MEAN, IMAGENET_STD
from ssl_backdoor.evaluate import probes
from ssl_backdoor.methods.build import build_backbone, build_method, view_specs
from ssl_backdoor.specs import FitSpec, Resources, TrainSpec
from ssl_backdoor.stages import IngestStage, StageCall, open_dataset, run_stage
from ssl_backdoor.store import open_store
from ssl_backdoor.train.optim import build_schedule
from ssl_backdoor.train.pretrain import train_backbone
from ssl_backdoor.train.training_set import TrainingSet

os.environ["LIGHTLY_DID_VERSION_CHECK"] = "True"  # it would ask a server


class Images(torch.utils.data.Dataset[Any]):
    """PIL images under a transform, as lightly reads them."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Any]):
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Any:
        return self.transform(self.images[row])


class Theirs(NamedTuple):
    """lightly's parts of one method."""

    transform: Any
    loss: Callable[[list[Tensor], float], Tensor]
    trained: list[nn.Module]


def simclr(spec: TrainSpec, backbone: nn.Module, dim: int) -> Theirs:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    method = spec.method
    head = SimCLRProjectionHead(dim, method.projector_hidden_dim, method.embedding_dim)
    criterion = NTXentLoss(temperature=method.temperature)
    both = nn.Sequential(backbone, head)
    transform = SimCLRTransform(input_size=spec.fit.views.size_px, gaussian_blur=0.0)
    return Theirs(transform, lambda views, _: criterion(both(views[0]), both(views[1])), [both])


def moco(spec: TrainSpec, backbone: nn.Module, dim: int) -> Theirs:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import MoCoProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.transforms import MoCoV2Transform

    method = spec.method
    online = nn.Sequential(backbone, MoCoProjectionHead(dim, method.projector_hidden_dim, method.embedding_dim))
    slow = copy.deepcopy(online).requires_grad_(False)
    bank = NTXentLoss(method.temperature, memory_bank_size=(method.queue_size, method.embedding_dim))

    def loss(views: list[Tensor], _: float) -> Tensor:
        update_momentum(online, slow, m=method.ema_decay)
        with torch.no_grad():
            keys = slow(views[1])
        return bank(online(views[0]), keys)

    return Theirs(MoCoV2Transform(input_size=spec.fit.views.size_px, gaussian_blur=0.0), loss, [online])


def byol(spec: TrainSpec, backbone: nn.Module, dim: int) -> Theirs:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from lightly.utils.scheduler import cosine_schedule

    method, size = spec.method, spec.fit.views.size_px
    online = nn.Sequential(backbone, BYOLProjectionHead(dim, method.projector_hidden_dim, method.embedding_dim))
    predictor = BYOLPredictionHead(method.embedding_dim, method.predictor_hidden_dim, method.embedding_dim)
    slow = copy.deepcopy(online).requires_grad_(False)
    negative_cosine = NegativeCosineSimilarity()

    def loss(views: list[Tensor], progress: float) -> Tensor:
        update_momentum(online, slow, m=cosine_schedule(int(progress * 10_000), 10_000, method.ema_decay_start, 1.0))
        with torch.no_grad():
            targets = [slow(view) for view in views]
        first, second = (predictor(online(view)) for view in views)
        # The published loss, 2 - 2 cos summed over both directions, as ours.
        return 4 + 2 * (negative_cosine(first, targets[1]) + negative_cosine(second, targets[0]))

    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(input_size=size, gaussian_blur=0.0),
        view_2_transform=BYOLView2Transform(input_size=size, gaussian_blur=0.0),
    )
    return Theirs(transform, loss, [online, predictor])


THEIRS = {"MoCo v2": moco, "BYOL": byol, "SimCLR": simclr}


def train_theirs(label: str, spec: TrainSpec, images: Tensor, seed: int) -> nn.Module:
    """Their loop: DataLoader, per-image transforms, SGD."""
    torch.manual_seed(seed)
    fit = spec.fit
    backbone = build_backbone(spec.backbone, 1, seed)
    parts = THEIRS[label](spec, backbone, backbone.feature_dim)
    loader = torch.utils.data.DataLoader(
        Images(images, parts.transform), batch_size=fit.batch_size, shuffle=True, drop_last=True
    )
    parameters = [p for part in parts.trained for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters,
        fit.optimizer.lr,
        momentum=fit.optimizer.sgd_momentum,
        weight_decay=fit.optimizer.weight_decay,
        nesterov=fit.optimizer.nesterov,
    )
    schedule = build_schedule(fit.schedule, fit.optimizer.lr, fit.epochs, len(loader))
    step, num_steps = 0, fit.epochs * len(loader)
    for _ in range(fit.epochs):
        for views in loader:
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            optimizer.zero_grad()
            parts.loss(list(views), step / num_steps).backward()
            optimizer.step()
            step += 1
    return backbone


def train_ours(spec: TrainSpec, images: Tensor, seed: int) -> nn.Module:
    """The mini recipe, through the project's loop."""
    from ssl_backdoor.train.checkpoint import load_backbone

    with tempfile.TemporaryDirectory() as folder:
        train_backbone(
            lambda replicas, _: build_method(spec, seed, replicas),
            TrainingSet(images),
            spec.fit,
            Path(folder),
            seed,
            Resources(device="cpu"),
            views=view_specs(spec),
        )
        return load_backbone(Path(folder))


def knn_accuracy(backbone: nn.Module, train: Resident, test: Resident) -> float:
    """Share of the clean test images that 20 neighbours name rightly."""

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return torch.cat([backbone((part.float() / 255 - mean) / std) for part in images.split(500)])

    backbone.eval()
    classes = int(train.labels.max()) + 1
    scores = probes.knn(features(train.images), train.labels, classes, 20)
    return float((probes.predict(scores, features(test.images), classes) == test.labels).float().mean())


def compare(label: str, seed: int, train: Resident, test: Resident, epochs: int) -> dict[str, Any]:
    """One seed of one method on both sides."""
    spec = ssl.MINI.methods[label]
    fit: FitSpec = spec.fit.model_copy(update={"epochs": epochs or spec.fit.epochs})
    spec = spec.model_copy(update={"fit": fit})
    row: dict[str, Any] = {"method": label, "seed": seed, "epochs": fit.epochs}
    sides: dict[str, Callable[[], nn.Module]] = {
        "ours": lambda: train_ours(spec, train.images, seed),
        "lightly": lambda: train_theirs(label, spec, train.images, seed),
    }
    for side, make in sides.items():
        started = time.perf_counter()
        backbone = make()
        seconds = time.perf_counter() - started
        row |= {
            f"{side}_accuracy": knn_accuracy(backbone, train, test),
            f"{side}_images_per_s": len(train.images) * fit.epochs / seconds,
        }
    print(json.dumps(row), flush=True)
    return row


def summary(label: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means, and the difference with its 95 % t interval over seeds."""
    ours, peer = (np.array([row[f"{side}_accuracy"] for row in rows]) for side in ("ours", "lightly"))
    gap = 100 * (ours - peer)
    half = float(stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / len(gap) ** 0.5) if len(gap) > 1 else None
    speed = [row["ours_images_per_s"] / row["lightly_images_per_s"] for row in rows]
    return {
        "method": label,
        "ours_percent": float(100 * ours.mean()),
        "lightly_percent": float(100 * peer.mean()),
        "difference_points": float(gap.mean()),
        "half_interval_points": half,
        "n": len(rows),
        "speed_ratio": float(np.median(speed)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10; without it the embedded scenes are used")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(THEIRS))
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed: shows that it runs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        train, test = held(options.data, folder)
    rows, means = [], []
    for label in options.methods.split(","):
        here = [
            compare(label, seed, train, test, int(options.quick))
            for seed in range(1 if options.quick else options.seeds)
        ]
        rows += here
        means.append(summary(label, here))
        print(json.dumps(means[-1]), flush=True)
    if options.out:
        machine = {"cpu": platform.processor() or platform.machine(), "threads": 1, "torch": torch.__version__}
        options.out.write_text(json.dumps({"machine": machine, "summary": means, "rows": rows}, indent=1) + "\n")


def held(data: str | None, folder: str) -> tuple[Resident, Resident]:
    """Both splits in memory, at 16 px."""
    from ssl_backdoor.specs import ScenesSourceSpec

    spec = ssl.MINI.dataset
    if data is None:
        scenes = ScenesSourceSpec(train_per_class=100, test_per_class=50)
        spec = spec.model_copy(update={"source": scenes, "classes": ()})
    store = open_store(folder)
    call = StageCall(IngestStage(dataset=spec), source=source_digest(spec, data), data=data)
    dataset = open_dataset(store, run_stage(call, store).ref)
    return load_resident(dataset, "train"), load_resident(dataset, "test")


if __name__ == "__main__":
    main()
