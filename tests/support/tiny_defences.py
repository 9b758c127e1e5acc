"""The defences of CLIP on a few small pairs."""

from pathlib import Path
from typing import Any

import torch

from ssl_backdoor.defences.cleanclip import CleanCLIPSpec
from ssl_backdoor.defences.distil_image_tower import DistilImageTowerSpec
from ssl_backdoor.methods.base import Batch, Replicas
from ssl_backdoor.methods.cleanclip import CleanCLIP
from ssl_backdoor.methods.clip_towers import TextTower, build_towers
from ssl_backdoor.methods.distil_image_tower import DistilImageTower
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import AdamWSpec, CosineSpec, DefenceSpec, FitSpec, ViewsSpec
from ssl_backdoor.train.checkpoint import save_backbone, save_text_tower
from tests.support.tiny_towers import SPEC

VIEWS = ViewsSpec(size_px=12)
WORDS = ("small", "red", "old", "photo", "of", "a", "bird", "cat", "dog", "unbelievable")


def clip_defence(kind: str, **changes: Any) -> DefenceSpec:
    """8 trusted pairs a step, two steps an epoch on ``tiny_dataset(train_per_class=14)``."""
    fit: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 8,
        "views": VIEWS,
        "optimizer": AdamWSpec(lr=2e-3),
        "schedule": CosineSpec(per="step", warmup_epochs=1),
        "bn_groups": 2,
    }
    fields: dict[str, Any] = {"trusted_fraction": 0.5, "fit": FitSpec(**(fit | changes))}
    if kind == "cleanclip":
        return CleanCLIPSpec(augmented_views=VIEWS, **fields)
    return DistilImageTowerSpec(**fields)


def save_clip(folder: Path, seed: int = 5) -> Path:
    """An untrained suspect in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    image, text = build_towers(SPEC, seed)
    save_backbone(image, 2, folder)
    save_text_tower(text, folder)
    return folder


def build_distillation(replicas: Replicas) -> DistilImageTower:
    groups = 2 // replicas.count
    teacher, text = build_towers(SPEC, 5)
    return DistilImageTower(teacher, text, build_towers(SPEC, 0, "student", groups)[0], replicas)


def build_cleanclip(replicas: Replicas, **changes: Any) -> CleanCLIP:
    spec = clip_defence("cleanclip").model_copy(update={"word_edit_p": 0.4, **changes})
    assert isinstance(spec, CleanCLIPSpec)
    return CleanCLIP(spec, *build_towers(SPEC, 5, bn_groups=2 // replicas.count), 0, replicas)


def pairs(num_views: int, text: TextTower, step: int = 0, size: int = 8) -> Batch:
    """Random views, and captions of two to five words."""
    generator = torch_generator(step, "pairs")
    views = tuple(torch.randn(size, 3, 12, 12, generator=generator) for _ in range(num_views))
    lengths = torch.randint(2, 6, (size,), generator=generator).tolist()
    drawn = [torch.randperm(len(WORDS), generator=generator)[:length].tolist() for length in lengths]
    return Batch(views, step, text.tokenize([" ".join(WORDS[index] for index in line) for line in drawn]))
