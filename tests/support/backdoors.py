"""Encoders and images on which a backdoor's effect is known: what detectors of encoders and tampering are tested by."""

from pathlib import Path

import torch

from ssl_backdoor.detection.pool import Pool
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.train.checkpoint import save_backbone
from tests.support.tiny_training import BACKBONE

SIDE_PX = 12


def save_fresh(folder: Path, seed: int = 5) -> Path:
    """An untrained encoder in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_backbone(build_backbone(BACKBONE, 1, seed), 1, folder)
    return folder


def tiny_pool(count: int = 64) -> Pool:
    """Random images, each around a colour of its own."""
    generator = torch_generator(0, "pool")
    colours = torch.rand(count, 3, 1, 1, generator=generator) * 160
    noise = 90 * torch.rand(count, 3, SIDE_PX, SIDE_PX, generator=generator)
    return Pool((colours + noise).to(torch.uint8), torch.arange(count), "cpu")
