"""About how long a run takes, from counted work and a rate measured beforehand: at once, where ``estimate`` measures.

A unit of work is a multiplication with an addition in a network's convolutions and matrices.
"""

import os
from pathlib import Path

from ssl_backdoor.data.counts import Counts
from ssl_backdoor.defences.trusted import num_trusted
from ssl_backdoor.specs import (
    BackboneSpec,
    ExternalSpec,
    FitSpec,
    OpenCLIPSpec,
    Repair,
    ReportSpec,
    ResNetSpec,
    ViTSpec,
)

_WORK_PER_S = 2.0e10
"""Of one CPU core, in training, augmentation included (2 vCPU of 2026, small networks)."""
_STEP_S = 0.01
"""Of a step, whatever its batch."""
_PASSES = 8
"""Through the network for an image and epoch: two views forward and backward (6), and through the EMA copy (2)."""
_SCORED_S = 4e-4
"""An image that is scored: decoded, stamped, passed once at 16 px."""
_START_S, _ENCODER_S = 20.0, 6.0


def work_of(backbone: BackboneSpec, side_px: int) -> float:
    """Units of one pass of one image of ``side_px``; of an open_clip or other model about, as of a ResNet."""
    match backbone:
        case ViTSpec(patch_px=patch_px, embed_dim=dim, depth=depth):
            tokens = (side_px / patch_px) ** 2
            return depth * (12 * tokens * dim**2 + 2 * tokens**2 * dim) + 3 * tokens * patch_px**2 * dim
        case OpenCLIPSpec(config=config) if config.startswith("tiny-"):
            return work_of(ResNetSpec(depth=8, width=16, stem="small"), side_px)
        case OpenCLIPSpec() | ExternalSpec():
            return work_of(ResNetSpec(depth=50), side_px)
        case ResNetSpec(depth=depth, width=width, stem=stem):
            area = float(side_px**2) if stem == "small" else (side_px / 4) ** 2
            work = 27.0 * width * area if stem == "small" else 147.0 * width * 4 * area
            for stage, blocks in enumerate(backbone.stages):
                channels, pixels = width * 2**stage, area / 4**stage
                work += pixels * channels**2 * (18 * blocks - 4.5 * (stage > 0) if depth < 50 else 17 * blocks)
            return work


def minutes(report: ReportSpec, counts: Counts) -> float:
    """About how many minutes the runs take on the CPUs of this machine, if nothing is reused.

    Args:
        report: the runs, all on the same data.
        counts: of the data.
    """
    trainings: set[tuple[object, ...]] = set()
    seconds = 0.0
    num_encoders = 0
    for run in report.runs:
        px = run.train.fit.views.size_px
        for arm in run.arms:
            num_encoders += 1
            attack = run.attack if arm.trained_on == "poisoned" else None
            key = (run.dataset, run.train, attack, arm.defence, run.seed)
            if key in trainings:
                continue
            trainings.add(key)
            fit: FitSpec | None = run.train.fit
            num_images = counts.num_train
            if isinstance(arm.defence, Repair):
                fit = arm.defence.fit
                num_images = num_trusted(num_images, arm.defence.trusted_fraction or 1.0)
            if fit is not None:
                work = _PASSES * work_of(run.train.backbone, fit.views.size_px) / _WORK_PER_S
                seconds += fit.epochs * num_images * (work + _STEP_S / fit.batch_size)
        conditions = 2 + run.evaluation.unseen_triggers
        scored = counts.num_train + conditions * counts.num_test
        seconds += len(run.arms) * scored * _SCORED_S * max(1.0, (px / 16) ** 2 / 4)
    cores = min(os.cpu_count() or 1, max(1, len(trainings)))
    return (_START_S + (seconds + _ENCODER_S * num_encoders) / cores) / 60


def sentence(report: ReportSpec, counts: Counts) -> str:
    """The estimate for people, and what shortens a long run."""
    found = minutes(report, counts)
    length = f"{found:,.0f} minutes" if found < 120 else f"{found / 60:,.0f} hours"
    text = (
        f"estimate: about {'a minute' if found < 1.5 else length} on this machine's CPUs, less for what is reused "
        f"(ssl-backdoor estimate own measures it)"
    )
    if Path("/proc/driver/nvidia/version").exists():
        text += "; a GPU is much faster"
    elif found > 30:
        text += "; shorter with --image-size 16, fewer --epochs or --set dataset.max_train_per_class=500"
    return text
