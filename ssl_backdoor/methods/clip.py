"""CLIP (Radford et al. 2021), https://arxiv.org/abs/2103.00020, on open_clip's towers and loss.

Compared with the paper's figure 3 and https://github.com/mlfoundations/open_clip (train.py, loss.py). An image and its
caption are each other's positive; the other captions and images of the global batch are the negatives.

Shapes: b pairs of this replica, B of all replicas, D embedding, L tokens.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, tokens_of, views_of
from ssl_backdoor.methods.clip_towers import ImageTower, TextTower, build_towers
from ssl_backdoor.specs import CLIPSpec, TrainSpec


@final
class CLIP(SSLMethod):
    """Image tower, text tower and the learnt scale (the text tower's).

    NOTE: the paper trains with a warm-up of 2,000 steps, mixed precision and a random square crop; those are fields of
    the fit here.
    """

    num_views = 1

    @classmethod
    def build(cls, train: TrainSpec, seed: int, replicas: Replicas | None = None) -> "CLIP":
        """See the base; both towers are fresh. Micro-batches are the BatchNorm groups where there are some."""
        spec: Any = train.method
        towers: Any = train.backbone
        replicas = replicas or SingleProcess()
        groups = 1 if spec.micro_batch_size else train.fit.bn_groups // replicas.count
        return cls(spec, *build_towers(towers, seed, bn_groups=groups), replicas)

    def __init__(self, spec: CLIPSpec, image: ImageTower, text: TextTower, replicas: Replicas | None = None):
        super().__init__()
        self.spec = spec
        self.replicas = replicas or SingleProcess()
        self.backbone = image
        self.text = text
        with torch.no_grad():
            text.logit_scale.fill_(math.log(1 / spec.initial_temperature))

    @property
    def text_tower(self) -> TextTower:
        """The text tower that is trained here."""
        return self.text

    def loss(self, batch: Batch) -> LossOutput:
        """The mean of image-to-text and text-to-image cross-entropy over the global batch's similarities."""
        (images,) = views_of(batch, self.num_views)
        image = F.normalize(self._pass(self.backbone, images).float(), dim=1)  # (b, D)
        text = F.normalize(self._pass(self.text, tokens_of(batch)).float(), dim=1)
        scale = self.text.logit_scale.exp()
        return LossOutput(clip_loss(image, text, scale, self.replicas), {"temperature": 1 / scale.detach()})

    def after_step(self, progress: float) -> None:
        """Clamp the logit scale, as open_clip does."""
        self.text.clamp_logit_scale_()

    def _pass(self, tower: nn.Module, rows: Tensor) -> Tensor:
        size = self.spec.micro_batch_size
        return in_chunks(tower, rows, size) if size else tower(rows)


def clip_loss(image: Tensor, text: Tensor, scale: Tensor, replicas: Replicas) -> Tensor:
    """open_clip's loss of this replica's pairs against all replicas'; its mean over replicas is the whole batch's.

    Gathering passes gradients on: averaged over replicas, they are those of one replica with the whole batch.

    Args:
        image: (b, D), unit rows, with gradient.
        text: (b, D), unit rows; row i is the caption of image i.
        scale: Scalar, 1 / temperature.
        replicas: Where the other pairs are.
    """
    with open_clip_loss(image.device, replicas) as loss:
        mean: Tensor = loss(image, text, scale)
    return mean


@contextlib.contextmanager
def open_clip_loss(device: torch.device, replicas: Replicas) -> Iterator[Any]:
    """open_clip's ``ClipLoss`` over the pairs of all replicas, in full precision: each has its rows' share."""
    from open_clip.loss import ClipLoss

    with torch.autocast(device.type, enabled=False), warnings.catch_warnings():
        # torch deprecates the gathering that open_clip calls; it works in every release that constraints.txt allows.
        warnings.filterwarnings("ignore", message=r"torch\.distributed\.nn\.functional\.", category=FutureWarning)
        yield ClipLoss(local_loss=True, gather_with_grad=True, rank=replicas.index, world_size=replicas.count)


def in_chunks(tower: nn.Module, rows: Tensor, size: int) -> Tensor:
    """``tower(rows)`` with the memory of ``size`` rows: activations are dropped, and made again in the backward pass.

    Gradient caching (Gao et al. 2021, https://arxiv.org/abs/2101.06983): the same embeddings and gradients where
    rows do not meet in the tower. BatchNorm sees ``size`` rows at a time; its running statistics move once, by the
    mean of the chunks', so that they do not depend on how chunks are spread over replicas.

    Raises:
        SpecError: ``size`` does not divide the number of rows.
    """
    if len(rows) % size:
        raise SpecError(f"micro_batch_size {size} must divide the {len(rows)} pairs that one worker holds")
    buffers = dict(tower.named_buffers())
    statistics = [buffer for name, buffer in buffers.items() if name.endswith(("running_mean", "running_var"))]
    counts = [buffer for name, buffer in buffers.items() if name.endswith("num_batches_tracked")]
    before = [buffer.clone() for buffer in statistics]
    moved = [torch.zeros_like(buffer) for buffer in statistics]
    chunks = torch.split(rows, size)
    outputs = []
    for chunk in chunks:
        outputs.append(checkpoint(tower, chunk, use_reentrant=False, context_fn=_contexts(tower)))
        for buffer, start, total in zip(statistics, before, moved, strict=True):
            total.add_(buffer, alpha=1 / len(chunks))
            buffer.copy_(start)
    for buffer, total in zip(statistics, moved, strict=True):
        buffer.copy_(total)
    for count in counts:
        count.sub_(len(chunks) - 1)
    return torch.cat(outputs)


def _contexts(
    tower: nn.Module,
) -> Callable[[], tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]]:
    """For ``checkpoint``: nothing around the first pass, and frozen running statistics around the second."""
    return lambda: (contextlib.nullcontext(), _freeze_batch_norm_stats(tower))


@contextlib.contextmanager
def _freeze_batch_norm_stats(tower: nn.Module) -> Iterator[None]:
    parts = [part for part in tower.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [part.momentum for part in parts]
    for part in parts:
        part.momentum = 0.0
    try:
        yield
    finally:
        for part, momentum in zip(parts, momenta, strict=True):
            part.momentum = momentum
            if part.num_batches_tracked is not None:
                part.num_batches_tracked.sub_(1)
