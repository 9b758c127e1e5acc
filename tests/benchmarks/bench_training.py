"""Images per second of a whole training, beside the bare step, lightly, and the reference per-image pipeline.

    python -m tests.benchmarks.bench_training [--quick] [--device cuda] [--out FOLDER]

Equal on all sides: encoder, batch, number of views, optimiser, threads (all cores), images (uint8 noise in memory).

- ours: ``train_backbone``, as a run trains, from its first step to its last, four epochs of 60: resident fetch, views,
  forward, backward, update, EMA copy, queue, curves, a checkpoint, in the fastest arithmetic that the device has
  (bfloat16 on GPUs and where a CPU has AVX512-BF16 or AMX).
- ceiling: our networks and loss alone on views that lie on the device: forward, backward, update, EMA copy, queue. The
  fastest of three formats counts: float32, float32 channels last, bfloat16 channels last; each is named in the note. On
  a GPU also the last of them with its kernels launched as one CUDA graph, which is how ours launches them.
- lightly: its own transforms, heads, losses and loop; as its examples have it, and with its best flags (workers,
  channels last, the same arithmetic as ours).
- torchvision: our step under the reference pipeline of Saha et al.'s code: PIL transforms image by image in workers.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flows.recipes import ssl
from ssl_backdoor.data.view_parameters import IMAGENET_MEAN, IMAGENET_STD
from ssl_backdoor.methods.base import Batch, SingleProcess, SSLMethod
from ssl_backdoor.specs import FitSpec, ResNetSpec, Resources, TrainSpec
from ssl_backdoor.train.checkpoint import Checkpoints
from ssl_backdoor.train.gradients import NUM_EAGER, Gradients
from ssl_backdoor.train.optim import build_optimizer
from ssl_backdoor.train.pretrain import train_backbone
from ssl_backdoor.train.training_set import TrainingSet
from tests.benchmarks import lightly_side
from tests.benchmarks.bench_views import torchvision_steps
from tests.benchmarks.harness import Comparison, Options, machine, main, paired

FORMATS = {
    "float32": (torch.contiguous_format, "float32"),
    "float32, channels last": (torch.channels_last, "float32"),
    "bfloat16, channels last": (torch.channels_last, "bfloat16"),
}


class Case(NamedTuple):
    """What is trained, and what the project asks of itself there."""

    label: str
    px: int
    backbone: ResNetSpec
    batch: int
    bars: dict[str, float]


EPOCHS = 4  # of ours: its first steps, slower than the rest, weigh as little as in a short run
SMALL = ResNetSpec(depth=8, width=16, stem="small")
ON_CPU = (
    Case("MoCo v2", 16, SMALL, 64, {"ceiling": 0.9, "lightly": 5.0}),
    Case("MoCo v2", 32, SMALL, 64, {"ceiling": 0.9, "lightly": 4.0}),
    Case("BYOL", 32, SMALL, 64, {"ceiling": 0.9, "lightly": 4.0}),
    Case("SimCLR", 32, SMALL, 64, {"ceiling": 0.9, "lightly": 4.0}),
)
ON_GPU = (
    Case("MoCo v2", 32, ResNetSpec(depth=18, stem="small"), 256, {"ceiling": 0.95, "lightly": 5.0}),
    Case("MoCo v2", 224, ResNetSpec(depth=18), 256, {"ceiling": 0.95, "lightly": 2.0}),
    Case("BYOL", 224, ResNetSpec(depth=18), 256, {"ceiling": 0.95, "lightly": 2.0}),
)


class Kept(Checkpoints):
    """A checkpoint is written, as to a store, and dropped."""

    def load(self) -> None:
        """Nothing to go on from."""

    def save(self, step: int, file: Path) -> None:
        """Forget it."""


def spec_of(case: Case, precision: str) -> TrainSpec:
    base = ssl.MINI.methods[case.label]
    views = base.fit.views.model_copy(update={"size_px": case.px, "blur_p": 0.0})
    changed = {"batch_size": case.batch, "views": views, "bn_groups": 1, "precision": precision, "epochs": 1}
    fit = FitSpec.model_validate({**base.fit.model_dump(), **changed})
    return base.model_copy(update={"backbone": case.backbone, "fit": fit})


def timed(step: Callable[[int], object], num_steps: int, device: str, warm_up: int = 3) -> float:
    """Steps per second after ``warm_up``."""

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for index in range(warm_up):
        step(index)
    begun = now()
    for index in range(num_steps):
        step(index)
    return num_steps / (now() - begun)


def ours(spec: TrainSpec, images: Tensor, threads: int, device: str, epochs: int = 1) -> float:
    """As the training's own record has it: from the first step to the last, all that happens between; a checkpoint."""
    fit = spec.fit.model_copy(update={"epochs": epochs})
    num_steps = epochs * (len(images) // fit.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        summary = train_backbone(
            lambda replicas, _: spec.method.build(spec, 0, replicas),
            TrainingSet(images),
            fit,
            Path(folder),
            0,
            Resources(device=device, threads=threads, checkpoint_every_steps=1 + num_steps // 2),
            Kept(),
            views=spec.method.views(spec.fit.views),
        )
    return float(summary["images_per_second"])


class Bare:
    """The step and nothing else, in one of ``FORMATS``.

    ``how``: "eager"; "replayed", its kernels launched as one CUDA graph; or a mode of torch.compile for the loss.
    """

    def __init__(self, spec: TrainSpec, format_name: str, device: str, how: str = "eager") -> None:
        form, precision = FORMATS[format_name]
        self._method: SSLMethod = spec.method.build(spec, 0, SingleProcess()).to(device).to(memory_format=form)
        self._method.train()
        self._optimizer = build_optimizer(spec.fit.optimizer, [p for p in self._method.parameters() if p.requires_grad])
        size = spec.fit.views.size_px
        self.views = tuple(
            torch.randn(spec.fit.batch_size, 3, size, size, device=device).contiguous(memory_format=form)
            for _ in range(self._method.num_views)
        )
        self._autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
        self._replayed = Gradients(self._method, self._autocast, SingleProcess()) if how == "replayed" else None
        loss = self._method.loss
        self._loss = loss if how in {"eager", "replayed"} else torch.compile(loss, mode=how)

    def __call__(self, _: int) -> None:
        if self._replayed:
            self._replayed(Batch(self.views))
        else:
            self._optimizer.zero_grad(set_to_none=True)
            with self._autocast:
                loss = self._loss(Batch(self.views)).loss
            loss.backward()
        self._optimizer.step()
        self._method.after_step(0.5)


def theirs(case: Case, spec: TrainSpec, images: Tensor, threads: int, device: str, is_best: bool) -> float:
    """Images per second of lightly's loop, its first step and the start of its workers left out."""
    begun: list[float] = []

    def on_step(_: int) -> None:
        begun.append(time.perf_counter())

    more: dict[str, Any] = {"num_workers": threads} if is_best else {}
    if is_best and device == "cuda":
        more["pin_memory"] = True
    lightly_side.train(case.label, spec, images, 0, loader=more, is_best=is_best, device=device, on_step=on_step)
    return (len(begun) - 1) * spec.fit.batch_size / (begun[-1] - begun[0])


def reference(spec: TrainSpec, images: Tensor, threads: int, device: str) -> float:
    """Our step fed by torchvision's transforms, image by image, in a DataLoader's workers."""
    import torchvision.transforms as v1

    steps = torchvision_steps(v1, spec.fit.views)
    transform = v1.Compose([*steps, v1.ToTensor(), v1.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD))])
    bare = Bare(spec, "float32", device)
    loader: Any = torch.utils.data.DataLoader(
        lightly_side.Images(images, lambda image: (transform(image), transform(image))),
        spec.fit.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=threads,
    )
    begun: list[float] = []
    for views in loader:
        bare.views = tuple(view.to(device) for view in views)
        bare(0)
        begun.append(time.perf_counter())
    return (len(begun) - 1) * spec.fit.batch_size / (begun[-1] - begun[0])


def run(options: Options) -> Iterator[Comparison]:
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    has_bfloat16 = options.device == "cuda" or {"avx512_bf16", "amx_bf16"} & set(machine("cpu")["cpu_formats"])
    precision = "bfloat16" if has_bfloat16 else "float32"
    for case in ON_GPU if options.device == "cuda" else ON_CPU:
        yield compare(case, precision, threads, options)


def compare(case: Case, precision: str, threads: int, options: Options) -> Comparison:
    """One case: all sides once a repetition."""
    spec, device = spec_of(case, precision), options.device
    num_steps = 6 if options.quick else 60
    side = 256 if case.px == 224 else case.px
    images = torch.randint(0, 256, (case.batch * num_steps, 3, side, side), dtype=torch.uint8)
    # Theirs take long; most of all as shipped, in one process of a GPU's host, on large images.
    num_theirs, num_shipped = (24, 24) if device == "cpu" else (16, 3 if case.px == 224 else 16)
    some, few = (images[: case.batch * min(num_steps, num)] for num in (num_theirs, num_shipped))
    num_bare = num_steps // 2 if device == "cuda" else num_steps
    formats = {name: Bare(spec, name, device) for name in FORMATS if precision == "bfloat16" or "bfloat16" not in name}
    replayed = {"ceiling, replayed": Bare(spec, list(FORMATS)[-1], device, "replayed")} if device == "cuda" else {}
    contenders = {
        "ours": lambda: ours(spec, images, threads, device, EPOCHS),
        **{
            f"ceiling, {name}": lambda bare=bare: case.batch * timed(bare, num_bare, device)
            for name, bare in formats.items()
        },
        **{
            name: lambda bare=bare: case.batch * timed(bare, num_bare, device, warm_up=1 + NUM_EAGER)
            for name, bare in replayed.items()
        },
        "lightly": lambda: theirs(case, spec, few, threads, device, is_best=False),
        "lightly, best flags": lambda: theirs(case, spec, some, threads, device, is_best=True),
        "torchvision": lambda: reference(spec, some, threads, device),
    }
    figures = paired(contenders, options.repetitions)
    ceilings = {name: figures.pop(f"ceiling, {name}") for name in formats}
    figures["ceiling"] = [max(values) for values in zip(*ceilings.values(), strict=True)]
    said = ", ".join(f"{name} {sorted(values)[len(values) // 2]:,.0f}" for name, values in ceilings.items())
    where = f"{threads} threads" if device == "cpu" else device
    encoder = f"ResNet-{case.backbone.depth} width {case.backbone.width}"
    return Comparison(
        f"{case.label}, {case.px} px, {encoder}, batch {case.batch}, {where}",
        "images/s",
        figures,
        bars=case.bars,
        note=f"ours in {precision}; the bare step: {said} images/s",
    )


if __name__ == "__main__":
    main(run, __doc__)
