"""One epoch of MoCo v2 over images that all lie in the device's memory, beside the bare step and what bounds it.

    python -m tests.benchmarks.bench_resident [--quick] [--device cuda] [--out FOLDER]

On a GPU: as many images as ImageNet-100 has, 256 px, uint8, generated (25 GB); ResNet-18, 224 px, batch 256. On a CPU:
a few hundred of 40 px, which only shows that it runs.

- ours: ``train_backbone``, as a run trains: fetch, views, step, EMA copy, queue, curves, a checkpoint.
- bare: our networks and loss on views that lie on the device; on GPUs also with its kernels launched as one CUDA graph,
  as ours does, and with its loss under torch.compile, without and with the CUDA graphs of that.
- roofline: the operators of that step as PyTorch calls them, each in the time of its operations at the device's best
  matrix product or of the bytes that it reads and writes at the device's best copy, whichever is longer. Product and
  copy are timed here, in bfloat16 where ours trains in it.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ssl_backdoor.specs import ResNetSpec
from tests.benchmarks.bench_training import SMALL, Bare, Case, ours, spec_of, timed
from tests.benchmarks.harness import Comparison, Options, main, paired

ON_GPU = Case("MoCo v2", 224, ResNetSpec(depth=18), 256, {"bare": 0.95})
ON_CPU = Case("MoCo v2", 32, SMALL, 64, {})
NUM_IMAGES, SIDE_PX = 126_689, 256
HOW = {"bare, replayed": "replayed", "bare, compiled": "default", "bare, compiled graphs": "reduce-overhead"}
FORMAT = {"bfloat16": "bfloat16, channels last", "float32": "float32, channels last"}


class Roofline(TorchDispatchMode):
    """Adds up the least time of every operator that is called; those that only look at a tensor otherwise take none."""

    def __init__(self, flops_per_s: float, bytes_per_s: float) -> None:
        super().__init__()
        self._flops_per_s, self._bytes_per_s = flops_per_s, bytes_per_s
        self.flops, self.bytes, self.seconds = 0, 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
        touched = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, Tensor)]
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        num_bytes = 0 if is_view else sum(one.nbytes for one in touched)
        self.flops += flops
        self.bytes += num_bytes
        self.seconds += max(flops / self._flops_per_s, num_bytes / self._bytes_per_s)
        return out


def seconds_of(work: Callable[[], object], device: str) -> float:
    """The best of ten."""
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times)


def best_rates(device: str, precision: str) -> tuple[float, float]:
    """Operations per second of a large matrix product, bytes per second of a large copy (read and written)."""
    side, size = (8192, 2**30) if device == "cuda" else (1024, 2**26)
    matrix = torch.randn(side, side, device=device, dtype=getattr(torch, precision))
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product_s = seconds_of(lambda: torch.mm(matrix, matrix), device)
    return 2 * side**3 / product_s, 2 * size / seconds_of(lambda: target.copy_(source), device)


def run(options: Options) -> Iterator[Comparison]:
    on_gpu, device = options.device == "cuda", options.device
    case, precision = (ON_GPU, "bfloat16") if on_gpu else (ON_CPU, "float32")
    num_images, side_px = (NUM_IMAGES, SIDE_PX) if on_gpu and not options.quick else (8 * case.batch, case.px + 8)
    spec, threads = spec_of(case, precision), os.cpu_count() or 1
    torch.set_num_threads(threads)
    generator = torch.Generator(device).manual_seed(0)
    shape = (num_images, 3, side_px, side_px)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device, generator=generator)

    bare = Bare(spec, FORMAT[precision], device)
    bare(0)  # cuDNN chooses, the optimiser makes its state
    with Roofline(*(rates := best_rates(device, precision))) as least:
        bare(1)
    num_steps = num_images // case.batch
    contenders = {
        "ours": lambda: ours(spec, images, threads, device),
        "bare": lambda: case.batch * timed(bare, min(100, num_steps), device),
    }
    for name, how in HOW.items() if on_gpu else ():
        made = Bare(spec, FORMAT[precision], device, how)
        contenders[name] = lambda made=made: case.batch * timed(made, min(100, num_steps), device, warm_up=10)
    figures = paired(contenders, options.repetitions)
    figures["roofline"] = [case.batch / least.seconds] * options.repetitions
    place = "GPU" if on_gpu else "CPU"
    encoder = f"ResNet-{case.backbone.depth} width {case.backbone.width}"
    yield Comparison(
        f"{case.label}, {num_images:,} images of {side_px} px on the {place}, {encoder} at {case.px} px",
        "images/s",
        figures,
        bars=case.bars,
        note=f"an epoch in {num_images / figures['ours'][-1]:,.1f} s; a step of {case.batch} is "
        f"{least.flops / 1e12:.3f} TFLOP and {least.bytes / 1e9:.2f} GB read and written by its operators; the device "
        f"does {rates[0] / 1e12:.2f} TFLOP/s and {rates[1] / 1e9:.0f} GB/s",
    )


if __name__ == "__main__":
    main(run, __doc__)
