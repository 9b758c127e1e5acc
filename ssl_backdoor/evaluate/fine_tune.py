"""The head MAE was published with: the whole encoder fine-tuned on a labelled share of the clean training images.

He et al. 2021, https://arxiv.org/abs/2111.06377, table 9; https://github.com/facebookresearch/mae, main_finetune.py at
6a2ba40: AdamW, 100 epochs, cosine after 5 of warm-up, weight decay 0.05, layer-wise decay of the rate, label smoothing.

NOTE: crops and flips alone; upstream adds RandAugment, mixup, CutMix, random erasing and drop path. Batches are of 256
at most, so that 1 % of the labels makes more than one step an epoch; the head starts at zero.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.data.resident import load_resident
from ssl_backdoor.data.views import make_views
from ssl_backdoor.errors import SpecError
from ssl_backdoor.evaluate.features import Condition, labelled, split_features
from ssl_backdoor.evaluate.layers import Reading
from ssl_backdoor.evaluate.probes import NamedProbe, Scores, labelled_subset
from ssl_backdoor.evaluate.read import EvaluationInputs
from ssl_backdoor.methods.build import Backbone
from ssl_backdoor.methods.vit import ViT
from ssl_backdoor.progress import OnProgress, Progress
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import CosineSpec, EvaluationSpec, ViewsSpec
from ssl_backdoor.train.optim import build_schedule, without_compiler

EPOCHS = 100
BATCH = 256
LR = 5e-4
"""Upstream's base rate for ViT-B, which is that of batches of 256; smaller ones keep it."""
WARMUP_EPOCHS = 5
WEIGHT_DECAY = 0.05
LAYER_DECAY = 0.65
LABEL_SMOOTHING = 0.1
CROP_SCALE = (0.08, 1.0)
_MAX_BYTES = 8 << 30


def fine_tuned_readings(inputs: EvaluationInputs) -> Iterator[Reading]:
    """A copy of the backbone fine-tuned on each label fraction, with its head as probe ``fine_tune_{percent}``.

    The labelled images are held at the
    evaluated frame: uint8, 8 GiB at most. What is refused is refused before anything is trained.

    Raises:
        SpecError: the labelled images could take more than 8 GiB.
    """
    backbone, dataset, conditions, spec, seed, on_progress = inputs
    table = labelled(dataset, "train")
    subsets = {
        fraction: table.take(pa.array(labelled_subset(table["key"], table["label"].to_numpy(), fraction, seed)))
        for fraction in spec.label_fractions
    }
    _check_memory(max(subsets.values(), key=len), spec.crop_px)
    return _readings(backbone, dataset, subsets, conditions, spec, seed, on_progress)


def _readings(
    backbone: Backbone,
    dataset: Dataset,
    subsets: dict[float, pa.Table],
    conditions: Sequence[Condition],
    spec: EvaluationSpec,
    seed: int,
    on_progress: OnProgress,
) -> Iterator[Reading]:
    for fraction, subset in subsets.items():
        held = load_resident(
            replace(dataset, samples=subset),
            "train",
            resize_px=spec.resize_px,
            crop_px=spec.crop_px,
            interpolation=spec.interpolation,
        )
        tuned = copy.deepcopy(backbone)
        scores = fine_tune(tuned, held.images, held.labels, len(dataset.classes), seed, on_progress)
        yield Reading(
            split_features(tuned, dataset, "test", conditions, spec, seed),
            [NamedProbe(f"fine_tune_{100 * fraction:g}", scores)],
        )


def fine_tune(
    backbone: Backbone, images: Tensor, labels: Tensor, num_classes: int, seed: int, on_progress: OnProgress
) -> Scores:
    """Train ``backbone`` in place, on its device, and a linear head on its features; leaves it in eval mode.

    ``images`` uint8 (N, 3, H, W), ``labels`` int64 (N,). Draws come from the stream "fine_tune". Every image is seen
    once an epoch, the last batch may be smaller. Returns the head.
    """
    device = next(backbone.parameters()).device
    (n, _, height, width), batch_size = images.shape, min(BATCH, len(images))
    views = ViewsSpec(
        size_px=min(height, width), crop_scale=CROP_SCALE, interpolation="bicubic", jitter_p=0, grey_p=0, blur_p=0
    )
    head = nn.Linear(backbone.feature_dim, num_classes, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = without_compiler(torch.optim.AdamW)(_groups(backbone, head), weight_decay=WEIGHT_DECAY, fused=True)
    steps_per_epoch = -(-n // batch_size)
    schedule = build_schedule(CosineSpec(per="step", warmup_epochs=WARMUP_EPOCHS), LR, EPOCHS, steps_per_epoch)
    generator = torch_generator(seed, "fine_tune")
    backbone.train().requires_grad_(True)  # a loaded backbone is frozen
    for epoch in range(EPOCHS):
        for index, rows in enumerate(torch.split(torch.randperm(n, generator=generator), batch_size)):
            seen = make_views(images[rows].to(device), views, generator).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(head(backbone(seen)), labels[rows].to(device), label_smoothing=LABEL_SMOOTHING)
            lr = schedule(epoch * steps_per_epoch + index)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        on_progress(Progress(epoch + 1, EPOCHS, "fine-tuning epochs"))
    backbone.eval().requires_grad_(False)
    head.requires_grad_(False)
    return head


def _groups(backbone: Backbone, head: nn.Linear) -> list[dict[str, Any]]:
    """Parameters by layer, the head's rate in full, ``LAYER_DECAY`` less for each layer below; matrices alone decay."""
    depth = len(backbone.blocks) + 1 if isinstance(backbone, ViT) else 0
    layers: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in [*backbone.named_parameters(), *head.named_parameters(prefix="head")]:
        layer = _layer(name, depth) if depth else 0
        layers.setdefault((layer, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": parameters, "scale": LAYER_DECAY ** (depth - layer)} | ({} if decays else {"weight_decay": 0.0})
        for (layer, decays), parameters in layers.items()
    ]


def _layer(name: str, depth: int) -> int:
    """0 for a transformer's embedding and token, 1 on for its blocks, ``depth`` for what follows."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith(("cls_token", "patch_embed")) else depth


def _check_memory(images: pa.Table, crop_px: int) -> None:
    pixels = crop_px**2 or pc.max(pc.multiply(images["width"].cast("int64"), images["height"].cast("int64"))).as_py()
    needed = 3 * pixels * len(images)
    if needed > _MAX_BYTES:
        raise SpecError(
            f"the probe fine_tune would hold {needed / 2**30:,.1f} GiB of {len(images):,} labelled images, over the "
            f"limit of {_MAX_BYTES / 2**30:g} GiB: lower evaluation.label_fractions, or leave it out"
        )
