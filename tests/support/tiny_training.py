"""Trainings of seconds: every method of the union (and the defence) on a few small images."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from ssl_backdoor.defences.compress import CompressSpec
from ssl_backdoor.methods.base import Batch, Replicas, SingleProcess, SSLMethod
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.compress import CompRess
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import (
    CLIPSpec,
    FitSpec,
    MilestonesSpec,
    OpenCLIPSpec,
    ResNetSpec,
    Resources,
    SGDSpec,
    TrainSpec,
    ViewsSpec,
    ViTSpec,
    built_in,
)
from ssl_backdoor.train.pretrain import train_backbone
from ssl_backdoor.train.training_set import TrainingSet

BACKBONE = ResNetSpec(depth=8, width=4, stem="small")
TOWERS = OpenCLIPSpec(config="tiny-resnet8-w8")
VIT = ViTSpec(patch_px=4, embed_dim=16, depth=2, num_heads=2)
BATCH = 8
STEPS_PER_EPOCH = 4
NUM_IMAGES = BATCH * STEPS_PER_EPOCH + 3
SMALL = {
    "projector_hidden_dim": 16,
    "embedding_dim": 8,
    "predictor_hidden_dim": 16,
    "queue_size": 20,
    "decoder_dim": 8,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "num_permutations": 10,
    "tile_px": 3,
    "tile_dim": 8,
    "hidden_dim": 16,
    "bank_size": 20,
    "window": 24,
    "warm_epochs": 1,
}

METHODS: Mapping[str, Any] = {
    kind.model_fields["kind"].default: kind(**{name: SMALL[name] for name in kind.model_fields if name in SMALL})
    for kind in built_in("method")
} | {"clip_micro": CLIPSpec(micro_batch_size=4)}
METHODS = {**METHODS, "byol_batch": METHODS["byol"].model_copy(update={"heads_see": "batch"})}


RATES = {
    "simclr": 1e-4,
    "simsiam": 3e-5,
    "byol": 1e-4,
    "byol_batch": 1e-4,
    "msf": 3e-4,
    "rotnet": 3e-3,
    "clip": 3e-3,
    "clip_micro": 3e-3,
    "roclip": 3e-3,
    "safeclip": 3e-3,
}
SLOW: Mapping[str, Any] = {kind: {"optimizer": SGDSpec(lr=lr, weight_decay=5e-4)} for kind, lr in RATES.items()}
"""At the usual rate, with BatchNorm over so few images, these make differences of the last bit visible."""


def fit_spec(**changes: Any) -> FitSpec:
    fields: dict[str, Any] = {
        "epochs": 5,
        "batch_size": BATCH,
        "views": ViewsSpec(size_px=12),
        "optimizer": SGDSpec(lr=0.05, weight_decay=5e-4),
        "bn_groups": 2,
    }
    return FitSpec(**(fields | changes))


def train_spec(kind: str, **changes: Any) -> TrainSpec:
    backbone = {"open_clip": TOWERS, "vit": VIT}.get(METHODS[kind].backbone_kind, BACKBONE)
    return TrainSpec(method=METHODS[kind], backbone=backbone, fit=fit_spec(**SLOW.get(kind, {}) | changes))


def compress_spec(num_queues: Any, **changes: Any) -> CompressSpec:
    fit = fit_spec(schedule=MilestonesSpec(milestones=(2, 4), warmup_steps=3), **changes)
    return CompressSpec(queue_size=20, num_queues=num_queues, trusted_fraction=0.5, temperature=0.2, fit=fit)


def build_compress(num_queues: int, replicas: Replicas) -> SSLMethod:
    spec = compress_spec(num_queues)
    groups = spec.fit.bn_groups // replicas.count
    teacher, student = build_backbone(BACKBONE, 1, 5), build_backbone(BACKBONE, groups, 0, "student")
    return CompRess(spec, teacher, student, 0, replicas)


OBJECTIVES: Mapping[str, Callable[[Replicas], SSLMethod]] = {
    **{kind: lambda replicas, kind=kind: METHODS[kind].build(train_spec(kind), 0, replicas) for kind in METHODS},
    **{f"compress_{n}": lambda replicas, n=n: build_compress(n, replicas) for n in (1, 2)},
}
"""Everything that fit() can train, by name."""


def objective(name: str) -> SSLMethod:
    return OBJECTIVES[name](SingleProcess()).train()


def tiny_images() -> torch.Tensor:
    """(N, 3, 12, 12) uint8: smooth colours under noise, so that there is something to learn."""
    generator = torch_generator(0, "tiny images")
    colours = torch.rand(NUM_IMAGES, 3, 1, 1, generator=generator) * 160
    return (colours + 90 * torch.rand(NUM_IMAGES, 3, 12, 12, generator=generator)).to(torch.uint8)


def tiny_captions() -> pa.ChunkedArray:
    """Of the images of ``tiny_images``: one or two each."""
    colours = ("red", "green", "blue", "grey")
    texts = [f"a photo of {colours[i % 4]} noise, number {i}" for i in range(NUM_IMAGES)]
    return pa.chunked_array([[text + ("\nonly noise" if i % 3 == 0 else "") for i, text in enumerate(texts)]])


def random_batch(method: SSLMethod, step: int, size: int = BATCH) -> Batch:
    generator = torch_generator(step, "batch")
    views = tuple(torch.randn(size, 3, 12, 12, generator=generator) for _ in range(method.num_views))
    tokens = None
    if method.text_tower is not None:
        tokens = method.text_tower.tokenize([f"noise number {step * size + i}" for i in range(size)])
    return Batch(views, step, tokens)


def train(name: str, out: Path, checkpoints: Any = None, **changes: Any) -> dict[str, Any]:
    """20 steps of ``name`` through the loop that pre-training and distillation share."""
    out.mkdir(parents=True, exist_ok=True)
    resources = Resources(device="cpu", checkpoint_every_steps=10)
    return train_backbone(
        lambda replicas, _: OBJECTIVES[name](replicas),
        TrainingSet(tiny_images(), tiny_captions()),
        fit_spec(**SLOW.get(name, {}) | changes),
        out,
        0,
        resources,
        checkpoints,
    )


class Stop(Exception):
    """The process died."""


class FolderCheckpoints:
    """Keeps states in a folder; with ``dies`` the first save is the last thing that happens."""

    def __init__(self, folder: Path, *, dies: bool = False) -> None:
        self.folder = folder
        self.dies = dies
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, file: Path) -> None:
        shutil.copy(file, self.folder / f"{step:06d}.safetensors")
        if self.dies:
            raise Stop

    def load(self) -> tuple[int, Path] | None:
        files = sorted(self.folder.glob("*.safetensors"))
        return (int(files[-1].stem), files[-1]) if files else None
