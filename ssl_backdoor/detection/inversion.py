"""What detectors of encoders share: how features look under a patch or under a trigger that is searched for.

Images are float (B, 3, S, S) in [0, 1] wherever a trigger acts on them; ImageNet's mean and deviation, which every
backbone of the project reads, come after it. So a trigger is a picture, whatever the encoder.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.data.view_parameters import IMAGENET_MEAN, IMAGENET_STD
from ssl_backdoor.detection.pool import Pool
from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.losses import mean_pairwise_cosine
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.train.checkpoint import load_backbone

_BATCH = 256
AREAS = (0.01, 0.02, 0.05, 0.10, 0.25, 1.0)
"""Shares of the image at which the curve of collapse over area is read."""


class Encoder:
    """A backbone that gradients pass through to the images; its own weights get none."""

    def __init__(self, folder: Path, device: str):
        self._backbone = load_backbone(folder).to(device).to(memory_format=torch.channels_last)
        self._mean, self._std = (torch.tensor(of, device=device).view(3, 1, 1) for of in (IMAGENET_MEAN, IMAGENET_STD))
        self.device = device

    def __call__(self, images: Tensor) -> Tensor:
        """Unit features (B, D) of float (B, 3, S, S) in [0, 1]."""
        seen = ((images - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        return F.normalize(self._backbone(seen).float(), dim=1)

    def features(self, images: Tensor) -> Tensor:
        """As a call, of many images and without gradient."""
        with torch.no_grad():
            return torch.cat([self(part) for part in torch.split(images, _BATCH)])


class Images(NamedTuple):
    """Disjoint parts of a pool, float (N, 3, S, S) in [0, 1]."""

    search: Tensor
    held_out: Tensor


def split(pool: Pool, num_images: int, seed: int, needed: int) -> Images:
    """``num_images`` to search on and as many others to check on; half and half of a smaller pool.

    Raises:
        SpecError: fewer than ``needed`` would be in each.
    """
    count = min(num_images, len(pool) // 2)
    if count < needed:
        raise SpecError(
            f"a detector of encoders needs {2 * needed} images or more, half of them to check on what it found on the "
            f"others, found {len(pool)}; bring more test images"
        )
    rows = torch.randperm(len(pool), generator=torch_generator(seed, "images"))[: 2 * count]
    images = (pool.images(rows).float() / 255).to(pool.device)
    return Images(images[:count], images[count:])


def card(images: Images, **more: Any) -> dict[str, Any]:
    """What a score can only be compared under: stored with it."""
    return {
        "input_range": "[0, 1]",
        "normalisation": "ImageNet's mean and standard deviation, after the trigger",
        "frame_px": images.search.shape[-1],
        "num_search": len(images.search),
        "num_held_out": len(images.held_out),
        **more,
    }


class Candidate(NamedTuple):
    """A trigger that a search has come to."""

    mask: Tensor
    """(S, S) in [0, 1]: the trigger's opacity at each pixel, of all three channels."""
    pattern: Tensor
    """(3, S, S) in [0, 1]."""
    collapse: float
    """What was reached on the images of its step."""

    @property
    def area(self) -> float:
        """Share of the image's pixels, in [0, 1]: the mask's sum over one channel, divided by S x S."""
        return float(self.mask.mean())

    def on(self, images: Tensor) -> Tensor:
        """(1 - mask) image + mask pattern."""
        return torch.lerp(images, self.pattern, self.mask)


class Variables:
    """Mask and pattern as tanh(v) / 2 + 1/2 of free variables that begin uniform in (0, 1), and their Adam.

    Wang et al. 2019's parameters (Neural Cleanse), with betas 0.5 and 0.9, as DECREE and SSL-Cleanse take them.
    """

    def __init__(self, side_px: int, lr: float, device: str, generator: torch.Generator):
        def variable(*shape: int) -> Tensor:
            start = torch.rand(shape, generator=generator).clamp(0.01, 0.99)
            return torch.atanh(2 * start - 1).to(device).requires_grad_(True)

        self._mask, self._pattern = variable(side_px, side_px), variable(3, side_px, side_px)
        self._optimizer = torch.optim.Adam([self._mask, self._pattern], lr, betas=(0.5, 0.9))

    def now(self) -> tuple[Tensor, Tensor]:
        """Mask and pattern, with gradient."""
        return torch.tanh(self._mask) / 2 + 0.5, torch.tanh(self._pattern) / 2 + 0.5

    def step(self, loss: Tensor) -> None:
        """One step down ``loss``."""
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()


def batches(images: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random ones of ``images`` without end, each at most once in a batch."""
    while True:
        yield images[torch.randperm(len(images), generator=generator)[:size].to(images.device)]


def collapse_of(encoder: Encoder, candidate: Candidate, images: Tensor) -> float:
    """Mean pairwise cosine of ``images`` under ``candidate``, each image flipped: another view than was searched on."""
    return float(mean_pairwise_cosine(encoder.features(candidate.on(images.flip(-1)))))


def best_by_area(found: Mapping[float, Candidate], candidate: Candidate) -> dict[float, Candidate]:
    """``found`` with ``candidate`` wherever it collapses more than what is there and is no larger than the area."""
    area = candidate.area
    better = {
        one: candidate
        for one in AREAS
        if area <= one and (one not in found or candidate.collapse > found[one].collapse)
    }
    return {**found, **better}
