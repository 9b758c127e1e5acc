"""Pre-training from a spec to files; distillation shares everything here but the method."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ssl_backdoor.allocator import retain_freed_memory
from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.device import pick_device
from ssl_backdoor.errors import SpecError
from ssl_backdoor.events import log_event
from ssl_backdoor.methods.base import Batch, Replicas, SSLMethod
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.specs import FitSpec, Resources, TrainSpec, ViewsSpec
from ssl_backdoor.train.batches import make_batches
from ssl_backdoor.train.checkpoint import (
    Checkpoints,
    NoCheckpoints,
    restore,
    save_backbone,
    save_text_tower,
    training_state,
)
from ssl_backdoor.train.collectives import connect
from ssl_backdoor.train.curves import Curves
from ssl_backdoor.train.fit import StepLog, fit
from ssl_backdoor.train.meter import Meter, format_summary
from ssl_backdoor.train.optim import build_optimizer, build_schedule
from ssl_backdoor.train.training_set import TrainingSet, load_training_set, tokenize_captions

BuildMethod = Callable[[Replicas, torch.device], SSLMethod]
PROGRESS_EVERY_S = 1.0


def pretrain(
    spec: TrainSpec,
    dataset: Dataset,
    overlay: Overlay | None,
    out: Path,
    seed: int,
    resources: Resources,
    checkpoints: Checkpoints,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Train the method of ``spec`` on the training images, the overlay's in place of those they replace.

    Every replica calls this with the same arguments; replica 0 alone writes. Labels are not looked at.

    Args:
        spec: What is trained, and how.
        dataset: The ingested images.
        overlay: The poison, or None.
        out: Existing folder for ``backbone.safetensors``, ``backbone.json`` and ``curves.parquet``; for CLIP also
            ``text.safetensors`` and ``text.json``.
        seed: Names every random stream.
        resources: Replicas, device, threads and how often a checkpoint is made.
        checkpoints: Where the state of an unfinished training is kept; an unfinished training is resumed.
        on_progress: Called about once a second.

    Returns:
        ``steps``, ``final_loss``, ``num_replicas``, ``num_parameters`` (of the backbone), and how it went, which
        differs from run to run: ``images_per_second`` (of all replicas, since this process started or resumed it) and
        ``performance`` (``Meter.summary``).

    Raises:
        SpecError: Workers do not divide ``bn_groups``, or there are fewer images than one batch.
        DataError: An image cannot be read, sizes differ, or CLIP finds an image without a caption.
        CheckpointError: The state to resume from does not fit.
        TrainingError: The loss is not finite.
    """
    check_workers(spec.fit, resources)
    data = load_training_set(dataset, overlay, resources, on_progress)

    def build(replicas: Replicas, device: torch.device) -> SSLMethod:
        return spec.method.build(spec, seed, replicas)

    views = spec.method.views(spec.fit.views)
    return train_backbone(
        build,
        data,
        spec.fit,
        out,
        seed,
        resources,
        checkpoints,
        on_progress,
        views=views,
        mix_p=spec.mix_p,
        crop_margin=spec.crop_margin if spec.crops == "localized" else None,
    )


def check_workers(spec: FitSpec, resources: Resources) -> None:
    """Refuse replicas that cannot hold whole BatchNorm groups.

    Raises:
        SpecError: ``resources.workers`` does not divide ``spec.bn_groups``.
    """
    if spec.bn_groups % resources.workers:
        raise SpecError(
            f"workers must divide bn_groups, so that replicas change no statistic: found {resources.workers} workers "
            f"and bn_groups {spec.bn_groups}; lower workers or set bn_groups to a multiple of them"
        )


def train_backbone(
    build: BuildMethod,
    data: TrainingSet,
    spec: FitSpec,
    out: Path,
    seed: int,
    resources: Resources,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress = silent,
    tables: Mapping[str, pa.Table] = MappingProxyType({}),
    views: Sequence[ViewsSpec] = (),
    *,
    mix_p: float = 0.0,
    crop_margin: float | None = None,
) -> dict[str, Any]:
    """Train the method that ``build`` returns on ``data``; files, result and errors as ``pretrain``.

    ``tables`` are written next to the rest, under their file names. ``views`` are those of the method, where they are
    not all ``spec.views``. ``mix_p`` and ``crop_margin`` as ``make_batches``.
    """
    check_workers(spec, resources)
    num_images = len(data.images)
    if shortage := spec.shortage(num_images):
        raise SpecError(shortage)
    torch.set_num_threads(resources.threads)
    device = pick_device(resources)
    replicas = connect(resources, device)
    method = build(replicas, device).to(device).to(memory_format=torch.channels_last)
    captions = None if method.text_tower is None else tokenize_captions(data.captions, method.text_tower.tokenize)
    images = data.images
    if device.type == "cuda" and isinstance(images, Tensor) and images.nbytes < torch.cuda.mem_get_info(device)[0] // 2:
        images = images.to(device)
    views = views or [spec.views] * method.num_views
    batches = make_batches(
        images,
        captions,
        spec.batch_size,
        views,
        seed,
        replicas,
        device,
        data.stretch,
        mix_p=mix_p,
        mix_groups=spec.bn_groups,
        crop_margin=crop_margin,
    )
    session = _Session(method, spec, num_images, replicas, checkpoints or NoCheckpoints(), on_progress)
    with retain_freed_memory():
        summary = session.run(batches, resources, device)
    if replicas.index == 0:
        save_backbone(method.backbone, spec.bn_groups, out)
        if method.text_tower is not None:
            save_text_tower(method.text_tower, out)
        for name, table in {"curves.parquet": session.curves.table(), **tables}.items():
            pq.write_table(table, out / name)
    return summary | {"num_parameters": sum(parameter.numel() for parameter in method.backbone.parameters())}


class _Session:
    """One training between its start or resumption and its files."""

    def __init__(
        self,
        method: SSLMethod,
        spec: FitSpec,
        num_images: int,
        replicas: Replicas,
        checkpoints: Checkpoints,
        on_progress: OnProgress,
    ):
        self.method = method
        self.spec = spec
        self.replicas = replicas
        self.checkpoints = checkpoints
        self.on_progress = on_progress
        self.steps_per_epoch = num_images // spec.batch_size
        self.num_steps = spec.epochs * self.steps_per_epoch
        self.optimizer = build_optimizer(spec.optimizer, (p for p in method.parameters() if p.requires_grad))
        self.curves = Curves(self.num_steps, self.steps_per_epoch)
        self.final_loss = float("nan")
        self.reported_at = 0.0

    def run(self, batches: Callable[[int], Batch], resources: Resources, device: torch.device) -> dict[str, Any]:
        first_step = self.resume()
        meter = Meter(first_step, self.num_steps, self.spec.batch_size, resources.threads, device)

        def on_step(log: StepLog) -> None:
            self.on_step(log)
            meter.record_step(log.step + 1)

        fit(
            self.method,
            meter.time_batches(batches),
            self.optimizer,
            build_schedule(self.spec.schedule, self.spec.optimizer.lr, self.spec.epochs, self.steps_per_epoch),
            first_step=first_step,
            num_steps=self.num_steps,
            replicas=self.replicas,
            autocast=torch.autocast(device.type, torch.bfloat16, enabled=self.spec.precision == "bfloat16"),
            on_step=on_step,
            on_checkpoint=self.on_checkpoint,
            checkpoint_every=resources.checkpoint_every_steps,
        )
        self.all_reduce_batch_norm_stats()
        speed = meter.summary()
        if self.replicas.index == 0:
            log_event("trained", format_summary(speed), images_per_second=speed["images_per_second"])
        return {
            "steps": self.num_steps,
            "final_loss": self.final_loss,
            "num_replicas": self.replicas.count,
            **speed,
        }

    def resume(self) -> int:
        """Steps done already; replica 0 reads the state for all."""
        found = self.checkpoints.load() if self.replicas.index == 0 else None
        data = self.replicas.broadcast_bytes(found[1].read_bytes() if found else b"")
        if not data:
            return 0
        restored = restore(data, self.method, self.optimizer, self.num_steps)
        self.curves.restore(restored.extra)
        if self.replicas.index == 0:
            log_event("resumes", f"resumes after step {restored.step:,} of {self.num_steps:,}", step=restored.step)
        return restored.step

    def on_step(self, log: StepLog) -> None:
        self.final_loss = log.loss
        self.curves.record(log)
        now = time.monotonic()
        if now - self.reported_at >= PROGRESS_EVERY_S or log.step + 1 == self.num_steps:
            self.reported_at = now
            self.on_progress(Progress(log.step + 1, self.num_steps, "steps", f"loss {log.loss:.3f}"))

    def on_checkpoint(self, step: int) -> None:
        self.all_reduce_batch_norm_stats()
        if self.replicas.index > 0:
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "state.safetensors"
            file.write_bytes(training_state(self.method, self.optimizer, step, self.curves.tensors()))
            self.checkpoints.save(step, file)

    def all_reduce_batch_norm_stats(self) -> None:
        """Average BatchNorm's running statistics over the replicas.

        Running statistics are linear in the batch statistics and unused in training mode, so averaging once at the end
        equals averaging every step.
        """
        names = ("running_mean", "running_var")
        self.replicas.all_reduce_mean_([b for name, b in self.method.named_buffers() if name.endswith(names)])
