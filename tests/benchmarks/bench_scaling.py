"""Training with two replicas beside one, at the same global batch; and, counted on paper, with 8 and 64 GPUs.

    python -m tests.benchmarks.bench_scaling [--quick] [--out FOLDER]

Measured: images per second of whole trainings (``train_backbone``), one thread a process, gloo over loopback, as under
``torchrun``; the process's start is not counted. Of one replica with the whole batch; of two, which share it; and of
two trainings at once that share nothing, with half of the batch each: what two cores of this machine can give at all.

On paper: a small step of each method is made under ``Counted``: its operations are PyTorch's own count, its bytes those
that each replica would send in a ring. The seconds follow from ``ASSUMED``.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flows.recipes import clip, ssl
from ssl_backdoor.methods.base import Batch, Replicas
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import FitSpec, ResNetSpec, Resources, TrainSpec
from ssl_backdoor.train.pretrain import train_backbone
from ssl_backdoor.train.training_set import TrainingSet
from tests.benchmarks.harness import Comparison, Options, main

REPLICAS = 2
ALONE, APART = "twice one replica", "two that share nothing"


class Case(NamedTuple):
    """What is trained, and for how many steps."""

    label: str
    backbone: ResNetSpec
    px: int
    batch: int
    steps: int

    @property
    def name(self) -> str:
        network = f"ResNet-{self.backbone.depth} of width {self.backbone.width}"
        return f"{self.label}, {network}, {self.px} px, batch {self.batch}"


SMALL = ResNetSpec(depth=8, width=16, stem="small")
CASES = (
    Case("MoCo v2", SMALL, 16, 256, 16),
    Case("BYOL", SMALL, 16, 256, 12),
    Case("SimCLR", SMALL, 32, 256, 6),
    Case("MoCo v2", ResNetSpec(depth=18, stem="small"), 32, 64, 4),
)


def spec_of(case: Case, batch: int, groups: int, steps: int) -> TrainSpec:
    mini = ssl.MINI.methods[case.label]
    views = mini.fit.views.model_copy(update={"size_px": case.px})
    fit = FitSpec(**(dict(mini.fit) | {"batch_size": batch, "bn_groups": groups, "epochs": steps, "views": views}))
    return TrainSpec(method=mini.method, backbone=case.backbone, fit=fit)


def train_all(file: str, share: int, steps: int) -> None:
    """In a process of its own: every case with 1/``share`` of its batch; rates to ``file``. An epoch is one step."""
    rates = []
    for case in CASES:
        replicas = int(os.environ.get("WORLD_SIZE", "1"))
        batch = case.batch // share
        spec = spec_of(case, batch, REPLICAS // share, steps or case.steps)
        images = torch.randint(256, (batch, 3, case.px, case.px), dtype=torch.uint8, generator=torch_generator(0, "i"))
        with tempfile.TemporaryDirectory() as folder:
            summary = train_backbone(
                lambda replicas, _, spec=spec: spec.method.build(spec, 0, replicas),
                TrainingSet(images),
                spec.fit,
                Path(folder),
                0,
                Resources(device="cpu", workers=replicas),
                views=spec.method.views(spec.fit.views),
            )
        rates.append(summary["images_per_second"])
    Path(file).write_text(json.dumps(rates))


def rates_of(processes: int, together: bool, steps: int) -> list[float]:
    """Images per second of each case, summed over ``processes`` that share nothing, or of them together."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    share = 1 if together else processes
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{rank}.json" for rank in range(processes)]
        running = []
        for rank, file in enumerate(files):
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            if together and processes > 1:
                place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                environment |= {"RANK": str(rank), "WORLD_SIZE": str(processes), **place}
            call = f"from tests.benchmarks.bench_scaling import train_all; train_all({str(file)!r}, {share}, {steps})"
            running.append(subprocess.Popen([sys.executable, "-c", call], env=environment))
        codes = [one.wait() for one in running]
        if any(codes):
            raise RuntimeError("a training of the benchmark failed; see above")
        rates = [json.loads(file.read_text()) for file in files]
    return rates[0] if together else [sum(each) for each in zip(*rates, strict=True)]


def run(options: Options) -> Iterator[Comparison]:
    steps = 2 if options.quick else 0
    sides = {"ours": (REPLICAS, True), ALONE: (1, True), APART: (REPLICAS, False)}
    figures: dict[str, list[list[float]]] = {name: [] for name in sides}
    for repetition in range(options.repetitions):
        for name in list(sides)[:: 1 if repetition % 2 == 0 else -1]:
            figures[name].append(rates_of(*sides[name], steps))
    for index, case in enumerate(CASES):
        rates = {name: [one[index] for one in each] for name, each in figures.items()}
        rates[ALONE] = [REPLICAS * rate for rate in rates[ALONE]]
        yield Comparison(case.name, "images/s", rates)


# ------------------------------------------------------------------------------------------------------ on paper

ASSUMED = {"flops": 0.2 * 989e12, "node": 0.7 * 450e9, "network": 0.7 * 50e9}
"""H100 SXM: a fifth of its dense bfloat16 peak; 70 % of NVLink within eight GPUs, of 400 Gb/s a GPU beyond."""
NODE = 8
PAPER = {
    **{label: ssl.PAPER.methods[label] for label in ("MoCo v2", "BYOL", "MSF", "SimCLR")},
    "CLIP": clip.PAPER.train,
}
IMAGES_PER_GPU = 128


@final
class Counted(Replicas):
    """Replica 0 of ``count`` that are not there: notes the bytes that it would send in a ring."""

    def __init__(self, count: int) -> None:
        self.count, self.index = count, 0
        self.sent: Counter[str] = Counter()

    def all_gather(self, rows: Tensor) -> Tensor:
        self.sent["all-gather"] += (self.count - 1) * rows.nbytes
        return rows.detach().repeat(self.count, *(1 for _ in rows.shape[1:]))

    def all_to_all_rows(self, rows: Tensor, order: Tensor) -> Tensor:
        self.sent["exchange"] += (self.count - 1) * rows.nbytes // self.count
        return rows.detach()

    def all_gather_with_grad(self, rows: Tensor) -> Tensor:
        self.sent["all-gather"] += (self.count - 1) * rows.nbytes
        self.sent["gradients"] += 2 * (self.count - 1) * rows.nbytes  # of the gathered rows, summed over all
        return rows.repeat(self.count, *(1 for _ in rows.shape[1:]))

    def all_reduce_mean_(self, tensors: Sequence[Tensor]) -> None:
        self.sent["gradients"] += 2 * (self.count - 1) * sum(tensor.nbytes for tensor in tensors) // self.count

    def broadcast_bytes(self, data: bytes) -> bytes:
        return data


class Step(NamedTuple):
    """One step of one GPU of ``gpus``. Bytes are sent; ``slow_bytes`` are moved in its own memory, the queue's held."""

    gpus: int
    flops: int
    gather_bytes: int
    shuffle_bytes: int
    gradient_bytes: int
    slow_bytes: int
    queue_bytes: int

    @property
    def compute_s(self) -> float:
        return self.flops / ASSUMED["flops"]

    @property
    def exchange_s(self) -> float:
        way = ASSUMED["node"] if self.gpus <= NODE else ASSUMED["network"]
        return (self.gather_bytes + self.shuffle_bytes + self.gradient_bytes) / way

    @property
    def efficiency(self) -> float:
        """Share of the step that is not exchange; our loop exchanges after the backward pass, so nothing overlaps."""
        return self.compute_s / (self.compute_s + self.exchange_s)


def counted_step(spec: TrainSpec, gpus: int) -> Step:
    """What one GPU does and sends in one step: counted in a step of two images a GPU, and taken times 64.

    Similarities of all with all grow faster; they are less than a hundredth of the operations.
    """
    counted, times = 2, IMAGES_PER_GPU // 2
    replicas = Counted(1 if spec.method.kind == "clip" else gpus)
    fit = spec.fit.model_copy(update={"batch_size": replicas.count * counted, "bn_groups": replicas.count})
    counter, side = FlopCounterMode(display=False), fit.views.size_px
    method = spec.method.build(spec.model_copy(update={"fit": fit}), 0, replicas).train()
    generator = torch_generator(0, "on paper")
    views = tuple(torch.randn(counted, 3, side, side, generator=generator) for _ in range(method.num_views))
    tokens = None if method.text_tower is None else method.text_tower.tokenize(["a photo"] * counted)
    with counter:
        torch.autograd.backward(method.loss(Batch(views, 0, tokens)).loss)
    if replicas.count < gpus:  # open_clip's loss asks torch.distributed itself for all images' and captions' embeddings
        replicas.count = gpus
        for _ in ("images", "captions"):
            replicas.all_gather_with_grad(torch.empty(counted, method.backbone.feature_dim))
    rows = Counter({name: times * sent for name, sent in replicas.sent.items()})
    replicas.sent.clear()
    replicas.all_reduce_mean_([parameter.grad for parameter in method.parameters() if parameter.grad is not None])
    slow = sum(p.nbytes for p in method.parameters() if not p.requires_grad)
    queue = sum(buffer.nbytes for name, buffer in method.named_buffers() if name.endswith("queue.rows"))
    gradients = replicas.sent["gradients"] + rows["gradients"]
    return Step(
        gpus, times * counter.get_total_flops(), rows["all-gather"], rows["exchange"], gradients, 3 * slow, queue
    )


def on_paper() -> str:
    """The table of ``counted_step``."""
    lines = [
        f"On paper, {IMAGES_PER_GPU} images a GPU, ResNet-18 (CLIP: RN50) at 224 px, float32 exchanged. Each H100 at a "
        "fifth of its bfloat16 peak, 70 % of NVLink within eight, 70 % of 400 Gb/s a GPU beyond; nothing overlaps:",
        "",
        "| method | GPUs | TFLOP a step | all-gather, MB sent | shuffled images, MB sent | gradients, MB sent "
        "| EMA, MB moved | queue, MB held | compute, ms | exchange, ms | efficiency |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label, spec in PAPER.items():
        for gpus in (NODE, 8 * NODE):
            one = counted_step(spec, gpus)
            sizes = (one.gather_bytes, one.shuffle_bytes, one.gradient_bytes, one.slow_bytes, one.queue_bytes)
            amounts = " | ".join(f"{size / 1e6:,.1f}" for size in sizes)
            times = f"{1000 * one.compute_s:.1f} | {1000 * one.exchange_s:.1f} | {one.efficiency:.2f}"
            lines.append(f"| {label} | {gpus} | {one.flops / 1e12:.2f} | {amounts} | {times} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(run, __doc__, appendix=on_paper)
