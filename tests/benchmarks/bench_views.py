"""Views per CPU second on one thread: ours (batched tensors) beside torchvision v1 (PIL), v2 (tensors) and kornia.

    python -m tests.benchmarks.bench_views [--quick] [--out FOLDER]

All draw from one distribution: crop 0.2-1, flip, jitter .6/.6/.6/.2 at 0.8, grey at 0.2, with and without blur at 0.5,
normalised. Input is decoded already (uint8 tensors; PIL images for v1). torchvision works image by image, kornia and
ours by the batch; kornia's crops are not antialiased. On the CPU seconds are the process's CPU seconds (all its
threads), so that neighbours on a shared machine count for little; on an idle one they are the wall's. On a GPU they
are the wall's, and torchvision is left out.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision.transforms as v1
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ssl_backdoor.allocator import retain_freed_memory
from ssl_backdoor.data.view_parameters import IMAGENET_MEAN, IMAGENET_STD, blur_reach_px
from ssl_backdoor.data.views import make_views
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import ViewsSpec
from tests.benchmarks.harness import Comparison, Options, main, paired

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


def kornia_steps(spec: ViewsSpec) -> torch.nn.Module:
    """The same operators of kornia, each sample of the batch with its own parameters."""
    import kornia.augmentation as k

    size, amounts = (spec.size_px, spec.size_px), (spec.brightness, spec.contrast, spec.saturation, spec.hue)
    steps: list[Any] = [
        k.RandomResizedCrop(size, scale=spec.crop_scale, cropping_mode="resample"),
        k.RandomHorizontalFlip(p=spec.flip_p),
        k.ColorJitter(*amounts, p=spec.jitter_p),
        k.RandomGrayscale(p=spec.grey_p),
    ]
    if spec.blur_p > 0:
        side = 2 * blur_reach_px(spec) + 1
        steps.append(k.RandomGaussianBlur((side, side), spec.blur_sigma_px, p=spec.blur_p))
    return k.AugmentationSequential(*steps, k.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD)))


def contenders(images: Tensor, spec: ViewsSpec) -> dict[str, Callable[[], Tensor]]:
    """Each makes one view of every image and returns (B, 3, S, S) float32."""
    generator = torch_generator(0, "bench_views")
    batched = kornia_steps(spec)
    made: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: make_views(images, spec, generator),
        "kornia": lambda: batched(images.float() / 255),
    }
    if images.is_cuda:
        return made
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    normalise = (list(IMAGENET_MEAN), list(IMAGENET_STD))
    first = v1.Compose([*torchvision_steps(v1, spec), v1.ToTensor(), v1.Normalize(*normalise)])
    second = v2.Compose([*torchvision_steps(v2, spec), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*normalise)])
    return made | {
        "torchvision v1": lambda: torch.stack([first(image) for image in pil]),
        "torchvision v2": lambda: torch.stack([second(image) for image in images]),
    }


def smooth_images(n: int, side_px: int) -> Tensor:
    """uint8 noise over a gradient of blobs: neither flat nor white noise."""
    generator = torch_generator(1, "bench_views")
    blobs = torch.nn.functional.interpolate(torch.rand(n, 3, 5, 5, generator=generator), side_px, mode="bicubic")
    grain = torch.rand(n, 3, side_px, side_px, generator=generator)
    return (blobs * 230 + grain * 25).clamp(0, 255).byte()


def views_per_second(make: Callable[[], Tensor], seconds: float) -> float:
    """Of CPU time, or of the wall where the views are on a GPU."""
    on_gpu = make().is_cuda

    def now() -> float:
        if not on_gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    num_views, start = 0, now()
    while True:
        for _ in range(10 if on_gpu else 1):
            num_views += len(make())
        if (spent := now() - start) >= seconds:
            return num_views / spent


def run(options: Options) -> Iterator[Comparison]:
    torch.set_num_threads(1)
    torch.manual_seed(0)  # torchvision and kornia draw from the global generator
    unit = "views/s" if options.device == "cuda" else "views per CPU second"
    for in_px, out_px, batch in CASES:
        for blur_p in (0.0, 0.5):
            batch = 256 if options.device == "cuda" else batch
            made = contenders(smooth_images(batch, in_px).to(options.device), views_spec(out_px, blur_p))
            rates = {
                name: lambda make=make: views_per_second(make, 0.1 if options.quick else 1.0)
                for name, make in made.items()
            }
            case = f"{in_px} to {out_px} px, batch {batch}, {'with' if blur_p else 'no'} blur"
            with retain_freed_memory():  # as in a training; the others gain by it too
                figures = paired(rates, options.repetitions)
            yield Comparison(case, unit, figures)


if __name__ == "__main__":
    main(run, __doc__)
