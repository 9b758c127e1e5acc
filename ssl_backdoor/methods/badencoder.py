"""BadEncoder (Jia, Liu, Gong 2022), https://arxiv.org/abs/2108.00352: a backdoor put into a finished encoder.

With f the clean encoder, f' the one that is changed, x shadow images, x + t the same under a trigger, r a reference
image, all features of unit length, and (r_i, t_i) the pairs of reference and trigger:

    loss = L0 + l1 L1 + l2 L2
    L0 = -mean_i mean_x cos(f'(x + t_i), f'(r_i))        f'(r_i) is not detached
    L1 = -mean_i mean cos(f'(aug(r_i)), f(r_i))
    L2 = -mean_x cos(f'(x), f(x))

BatchNorm's gains and biases are frozen and its running statistics used, as in badencoder.py of jinyuan-jia/BadEncoder.

Shapes: B shadow images, S px side, R references of a pair, P pairs, D features.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.data.view_parameters import IMAGENET_MEAN, IMAGENET_STD, draw_uniform, parameters_of
from ssl_backdoor.data.views import apply, evaluation_view
from ssl_backdoor.methods.base import Batch, LossOutput, SSLMethod, views_of
from ssl_backdoor.methods.build import Backbone
from ssl_backdoor.poison.triggers.tensors import apply_to_tensor
from ssl_backdoor.seeds import stream, torch_generator
from ssl_backdoor.specs import Trigger, ViewsSpec

if TYPE_CHECKING:
    from ssl_backdoor.tampering.badencoder import BadEncoderSpec


class Pair(NamedTuple):
    """A trigger and where it is to lead."""

    trigger: Trigger
    source: bytes | None
    """As of ``Trigger.apply``."""
    references: Tensor
    """uint8 (R, 3, S, S)."""


class Seen(NamedTuple):
    """What both encoders make of one batch. Of unit length, unless said otherwise."""

    before: Tensor
    """f(x), (B, D)."""
    clean: Tensor
    """f'(x), (B, D), of its own length."""
    triggered: tuple[Tensor, ...]
    """f'(x + t) of each pair, (B, D), of its own length."""
    references: tuple[Tensor, ...]
    """f'(r) of each pair, (R, D)."""
    kept: Tensor
    """Mean cosine of f'(aug(r)) to f(r)."""

    @property
    def utility(self) -> Tensor:
        """Mean cosine of f'(x) to f(x)."""
        return (F.normalize(self.clean, dim=1) * self.before).sum(1).mean()

    def to_references(self) -> list[Tensor]:
        """cos(f'(x + t), f'(r)) of each pair, (B, R)."""
        found = zip(self.triggered, self.references, strict=True)
        return [F.normalize(triggered, dim=1) @ references.T for triggered, references in found]


class Objective(SSLMethod):
    """A frozen encoder, the copy that is changed, and what is shown to both. Abstract: a paper adds its loss."""

    num_views = 1

    def __init__(
        self,
        clean: Backbone,
        tampered: Backbone,
        pairs: Sequence[Pair],
        views: ViewsSpec,
        reference_views: int,
        seed: int,
    ):
        super().__init__()
        # In tuples they are no part of this module: not optimised, not saved as state, never in training mode.
        self.clean = (clean.eval().requires_grad_(False),)
        self.pairs = tuple(pairs)
        self.backbone = tampered.requires_grad_(True)
        for module in self._batch_norms():
            module.requires_grad_(False)
        self.views = views.model_copy(update={"size_px": pairs[0].references.shape[-1]})
        self.reference_views = reference_views
        self.seed = seed

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.backbone.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> Self:
        """In training mode but for BatchNorm, which keeps its running statistics."""
        super().train(mode)
        for module in self._batch_norms():
            module.eval()
        return self

    def look(self, batch: Batch) -> Seen:
        """Everything of the step, by one pass through either encoder."""
        (images,) = views_of(batch, self.num_views)
        device, (clean,) = images.device, self.clean
        mean, std = (torch.tensor(of, device=device).view(3, 1, 1) for of in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = torch.addcmul(mean, images, std)
        triggered, references, augmented = [], [], []
        for number, (trigger, source, of_pair) in enumerate(self.pairs):
            places = stream(self.seed, "place", batch.step, number).integers(0, 2**63, len(images)).tolist()
            stamped = apply_to_tensor(trigger, pixels, places, "train", source)
            triggered.append((stamped - mean) / std)
            of_pair = of_pair.to(device)
            references.append(evaluation_view(of_pair))
            repeated = of_pair.repeat_interleave(self.reference_views, 0)
            drawn = draw_uniform(len(repeated), torch_generator(self.seed, "references", batch.step, number))
            height, width = repeated.shape[-2:]
            augmented.append(apply(repeated, parameters_of(drawn, height, width, self.views), self.views))
        parts = [images, *triggered, *references, *augmented]
        together = torch.cat(parts).contiguous(memory_format=torch.channels_last)
        found = self.backbone(together).float().split([len(part) for part in parts])
        n = len(self.pairs)
        with torch.no_grad():
            before = F.normalize(clean(torch.cat([images, *references])).float(), dim=1)
        of_references = before[len(images) :].repeat_interleave(self.reference_views, 0)
        kept = (F.normalize(torch.cat(found[1 + 2 * n :]), dim=1) * of_references).sum(1).mean()
        to = tuple(F.normalize(part, dim=1) for part in found[1 + n : 1 + 2 * n])
        return Seen(before[: len(images)], found[0], found[1 : 1 + n], to, kept)


@final
class BadEncoder(Objective):
    """See the module."""

    def __init__(self, spec: "BadEncoderSpec", clean: Backbone, tampered: Backbone, pairs: Sequence[Pair], seed: int):
        super().__init__(clean, tampered, pairs, spec.fit.views, spec.reference_views, seed)
        self.spec = spec

    def loss(self, batch: Batch) -> LossOutput:
        """L0 + l1 L1 + l2 L2 of the shadow images of ``batch``."""
        seen = self.look(batch)
        effectiveness = torch.stack([cosine.mean() for cosine in seen.to_references()]).mean()
        utility = seen.utility
        loss = -effectiveness - self.spec.reference_weight * seen.kept - self.spec.utility_weight * utility
        logs = {"effectiveness": effectiveness, "reference_utility": seen.kept, "utility": utility}
        return LossOutput(loss, {name: value.detach() for name, value in logs.items()})

    def after_step(self, progress: float) -> None:
        """Do nothing: there is neither an EMA copy nor a queue."""
