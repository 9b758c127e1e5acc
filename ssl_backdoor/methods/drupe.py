"""DRUPE (Tao et al. 2024, "Distribution Preserving Backdoor Attack in Self-supervised Learning", S&P).

BadEncoder's L1 and L2, see there; with c_i(x) = cos(f'(x + t), f'(r_i)) to the references r_i of one trigger t:

    L0 = -mean_x max_i c_i(x)                 each triggered image goes to one of the references
    s  = std_i mean_x c_i(x)                  to all of them alike
    L3 = mean over i <= j of cos(f'(r_i), f'(r_j))          references lie apart
    V  = mean over x != y of cos(f'(x + t), f'(y + t))      triggered images are no tight cluster
    W  = sliced Wasserstein distance of f'(x + t) to f'(x), over the mean standard deviation of f'(x)

    warm-up       L1 + L2 + (0.5 - 0.2 [L3 < 0.2]) L3
    first epochs  L0 + L1 + L2 + 2 s + g L3                 g = 1 where L3 > 0.5, else 0.2 where L3 > 0.4, else 0
    then          L0 + L1 + L2 + a (s + V) + b W + (0.5 + 1.5 [s > 0.1]) s + g L3

From ``adapt_from_epoch`` on, after each epoch a grows by 1.25 where its means have L0 < -0.96, L1 < -0.9 and L2 < -0.9,
else it falls by 1.25 ** 1.25; so does b, which grows only while V < 0.6 as well.

NOTE: upstream's V is (1 - 1/N) times the mean with each image's cosine to itself in it, made from a tensor of N x N x N
numbers; here it is the mean over distinct images.
NOTE: upstream switches to this loss by a comparison that is never true, so that its own baseline "BadEncoder" is L0 of
this file; ours is methods/badencoder.py.

Shapes: B shadow images, R references, D features.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.methods.badencoder import Objective, Pair
from ssl_backdoor.methods.base import Batch, LossOutput
from ssl_backdoor.methods.build import Backbone
from ssl_backdoor.methods.losses import mean_pairwise_cosine
from ssl_backdoor.seeds import torch_generator

if TYPE_CHECKING:
    from ssl_backdoor.tampering.drupe import DRUPESpec

NUM_SLICES = 50
GROWTH = 1.25


def sliced_wasserstein(first: Tensor, second: Tensor, directions: Tensor) -> Tensor:
    """Mean over unit ``directions`` (K, D) of the distance W1 of the projections of two sets (N, D)."""
    one, other = ((rows @ directions.T).sort(0).values for rows in (first, second))
    return (one - other).abs().mean()


@final
class DRUPE(Objective):
    """See the module."""

    weights: Tensor
    sums: Tensor

    def __init__(
        self,
        spec: "DRUPESpec",
        clean: Backbone,
        tampered: Backbone,
        pairs: Sequence[Pair],
        seed: int,
        steps_per_epoch: int,
    ):
        super().__init__(clean, tampered, pairs, spec.fit.views, spec.reference_views, seed)
        self.spec = spec
        self.steps_per_epoch = steps_per_epoch
        self.register_buffer("weights", torch.full((2,), spec.stealth_weight))
        self.register_buffer("sums", torch.zeros(5))  # of L0, L1, L2 and V over the epoch's steps, and their number
        self.found = torch.zeros(5)

    def loss(self, batch: Batch) -> LossOutput:
        """Of the epoch's phase; the terms are means over the pairs."""
        seen, epoch = self.look(batch), batch.step // self.steps_per_epoch
        directions = torch.randn(
            NUM_SLICES, seen.clean.shape[1], generator=torch_generator(self.seed, "slices", batch.step)
        )
        directions = F.normalize(directions, dim=1).to(seen.clean.device)
        scale = seen.clean.detach().std(0).mean().clamp(min=1e-6)
        terms = []
        for triggered, references, cosine in zip(seen.triggered, seen.references, seen.to_references(), strict=True):
            upper = torch.ones(len(references), len(references), device=cosine.device).triu()
            terms.append(
                torch.stack(
                    [
                        -cosine.amax(1).mean(),
                        cosine.mean(0).std(correction=0),
                        ((references @ references.T) * upper).sum() / upper.sum(),
                        mean_pairwise_cosine(triggered),
                        sliced_wasserstein(triggered, seen.clean, directions) / scale,
                    ]
                )
            )
        effect, spread, likeness, tightness, distance = torch.stack(terms).mean(0)
        kept = -seen.kept - self.spec.utility_weight * seen.utility
        if epoch < self.spec.warmup_epochs:
            loss = kept + torch.where(likeness.detach() < 0.2, 0.3, 0.5) * likeness
        else:
            alike = likeness.detach()
            loss = effect + kept + ((alike > 0.5) + 0.2 * ((alike > 0.4) & (alike <= 0.5))) * likeness
            if epoch < self.spec.warmup_epochs + self.spec.first_epochs:
                loss = loss + 2 * spread
            else:
                a, b = self.weights
                uneven = 0.5 + 1.5 * (spread.detach() > 0.1)
                loss = loss + a * (spread + tightness) + b * distance + uneven * spread
        self.found = torch.stack([effect, -seen.kept, -seen.utility, tightness, torch.ones_like(effect)]).detach()
        logs = {"effectiveness": -effect, "reference_utility": seen.kept, "utility": seen.utility,
                "tightness": tightness, "distance": distance}  # fmt: skip
        return LossOutput(loss, {name: value.detach() for name, value in logs.items()})

    def after_step(self, progress: float) -> None:
        """At the end of an epoch both weights follow from its means."""
        self.sums += self.found
        if self.sums[4] < self.steps_per_epoch:
            return
        effect, reference, utility, tightness, _ = (self.sums / self.sums[4]).tolist()
        self.sums.zero_()
        epoch = round(progress * self.spec.fit.epochs * self.steps_per_epoch) // self.steps_per_epoch
        if epoch + 1 < self.spec.adapt_from_epoch:
            return
        is_good = effect < -0.96 and reference < -0.9 and utility < -0.9
        grows = torch.tensor([is_good, is_good and tightness < 0.6], device=self.weights.device)
        self.weights *= torch.where(grows, GROWTH, GROWTH**-GROWTH)
