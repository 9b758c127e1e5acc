"""Zero-shot classification: a CLIP's text tower makes the classifier. No label is used, no head is trained.

Radford et al. 2021 (https://arxiv.org/abs/2103.00020), section 3.1.4. The prompt templates are open_clip's, and the
classifier equals that of ``open_clip.build_zero_shot_classifier``.
Shapes: C classes, D dimensions of the space that images and texts share.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.data.captions import humanize_class_name
from ssl_backdoor.evaluate.probes import Scores
from ssl_backdoor.methods.clip_towers import TextTower

_BATCH = 256


def prompt_templates(prompts: Literal["imagenet80", "simple7"]) -> tuple[Callable[[str], str], ...]:
    """open_clip's templates: each fills a class name into a sentence."""
    import open_clip

    match prompts:
        case "imagenet80":
            return tuple(open_clip.OPENAI_IMAGENET_TEMPLATES)
        case "simple7":
            return tuple(open_clip.SIMPLE_IMAGENET_TEMPLATES)


def embed_texts(text_tower: TextTower, texts: Sequence[str]) -> Tensor:
    """Unit rows float32 (n, D), on the tower's device. The tower must be in eval mode, as load_text_tower gives it."""
    device = next(text_tower.parameters()).device
    with torch.inference_mode():
        parts = [
            F.normalize(text_tower(text_tower.tokenize(texts[start : start + _BATCH]).to(device)).float(), dim=1)
            for start in range(0, len(texts), _BATCH)
        ]
    return torch.cat(parts).clone()  # an ordinary tensor again


def class_embeddings(
    text_tower: TextTower, classes: Sequence[str], prompts: Literal["imagenet80", "simple7"]
) -> Tensor:
    """Unit rows float32 (C, D): the normalised mean of the embeddings of each class's prompts."""
    templates = prompt_templates(prompts)
    means = [
        embed_texts(text_tower, [fill(humanize_class_name(name)) for fill in templates]).mean(dim=0) for name in classes
    ]
    return F.normalize(torch.stack(means), dim=1)


def zero_shot(embeddings: Tensor) -> Scores:
    """Cosine to each row of ``embeddings``, unit rows float32 (C, D)."""
    return lambda features: F.normalize(features, dim=1) @ embeddings.T
