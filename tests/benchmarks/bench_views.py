"""Views per second on one thread: ours (batched tensors) against torchvision v1 (PIL) and v2 (tensors), image by image.

    python -m tests.benchmarks.bench_views [--quick] [--out results.json]

All three draw from one distribution: crop 0.2-1, flip, jitter .6/.6/.6/.2 at 0.8, grey at 0.2, with and without blur at
0.5, normalised. Input is decoded already (uint8 tensors; PIL images for v1). Repetitions are paired: each times all
three, one after the other, and the ratios are taken within it. Seconds are the process's CPU seconds (all its threads),
so that neighbours on a shared machine count for little; on an idle one they are the wall's.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
import torchvision.transforms as v1
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ssl_backdoor.data.views import IMAGENET_MEAN, IMAGENET_STD, blur_reach_px, make_views
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import ViewsSpec

CASES = ((16, 16, 64), (32, 32, 64), (256, 224, 16))
"""Side of the images, side of the views, images in a batch."""


def views_spec(size_px: int, blur_p: float) -> ViewsSpec:
    return ViewsSpec(size_px=size_px, brightness=0.6, contrast=0.6, saturation=0.6, hue=0.2, blur_p=blur_p)


def torchvision_steps(t: Any, spec: ViewsSpec) -> list[Any]:
    """The steps that ``torchvision.transforms`` and ``.v2`` share; ``t`` is one of the two modules."""
    jitter = t.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)
    steps = [
        t.RandomResizedCrop(spec.size_px, scale=spec.crop_scale, antialias=True),
        t.RandomHorizontalFlip(spec.flip_p),
        t.RandomApply([jitter], spec.jitter_p),
        t.RandomGrayscale(spec.grey_p),
    ]
    if spec.blur_p > 0:
        steps.append(t.RandomApply([t.GaussianBlur(2 * blur_reach_px(spec) + 1, spec.blur_sigma_px)], spec.blur_p))
    return steps


def contenders(images: Tensor, spec: ViewsSpec) -> dict[str, Callable[[], Tensor]]:
    """Each makes one view of every image and returns (B, 3, S, S) float32."""
    generator = torch_generator(0, "bench_views")
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    normalise = (list(IMAGENET_MEAN), list(IMAGENET_STD))
    first = v1.Compose([*torchvision_steps(v1, spec), v1.ToTensor(), v1.Normalize(*normalise)])
    second = v2.Compose([*torchvision_steps(v2, spec), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*normalise)])
    return {
        "ours": lambda: make_views(images, spec, generator),
        "torchvision_v1": lambda: torch.stack([first(image) for image in pil]),
        "torchvision_v2": lambda: torch.stack([second(image) for image in images]),
    }


def views_per_cpu_second(make: Callable[[], Tensor], seconds: float) -> float:
    make()
    num_views, start = 0, time.process_time()
    while (elapsed := time.process_time() - start) < seconds or not num_views:
        num_views += len(make())
    return num_views / elapsed


def smooth_images(n: int, side_px: int) -> Tensor:
    """uint8 noise over a gradient of blobs: neither flat nor white noise."""
    generator = torch_generator(1, "bench_views")
    blobs = torch.nn.functional.interpolate(torch.rand(n, 3, 5, 5, generator=generator), side_px, mode="bicubic")
    grain = torch.rand(n, 3, side_px, side_px, generator=generator)
    return (blobs * 230 + grain * 25).clamp(0, 255).byte()


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def measure(in_px: int, out_px: int, batch: int, blur_p: float, repetitions: int, seconds: float) -> dict[str, Any]:
    made = contenders(smooth_images(batch, in_px), views_spec(out_px, blur_p))
    rates: dict[str, list[float]] = {name: [] for name in made}
    for repetition in range(repetitions):
        names = list(made) if repetition % 2 == 0 else list(made)[::-1]
        for name in names:
            rates[name].append(views_per_cpu_second(made[name], seconds))
    ratios = {
        f"ours/{name}": spread([a / b for a, b in zip(rates["ours"], rates[name], strict=True)])
        for name in rates
        if name != "ours"
    }
    case = {"in_px": in_px, "out_px": out_px, "batch": batch, "blur_p": blur_p}
    return case | {"views_per_cpu_s": {name: spread(values) for name, values in rates.items()}, "ratios": ratios}


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short repetition: does it run?")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # torchvision draws from the global generator
    repetitions, seconds = (1, 0.1) if arguments.quick else (5, 1.0)
    results = {"machine": machine(), "repetitions": repetitions, "cpu_seconds_each": seconds, "cases": []}
    print(" ".join(f"{name}={value}" for name, value in results["machine"].items()))
    print(
        f"views per CPU second on one thread: min / median / max of {repetitions} paired repetitions of {seconds} CPU s"
    )
    for in_px, out_px, batch in CASES:
        for blur_p in (0.0, 0.5):
            case = measure(in_px, out_px, batch, blur_p, repetitions, seconds)
            results["cases"].append(case)
            print(f"{in_px} -> {out_px} px, batch {batch}, blur_p {blur_p}")
            for name, rate in case["views_per_cpu_s"].items():
                print(f"  {name:24} {rate['min']:10,.0f} {rate['median']:10,.0f} {rate['max']:10,.0f}")
            for name, ratio in case["ratios"].items():
                print(f"  {name:24} {ratio['min']:10.1f} {ratio['median']:10.1f} {ratio['max']:10.1f}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
