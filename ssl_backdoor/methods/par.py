"""PAR, Perturb and Recover (Singh et al. 2024), https://arxiv.org/abs/2412.00727.

Compared with https://github.com/nmndeep/PerturbAndRecover, a720440. The embeddings are pushed away from those of
the suspect, so that what was planted is lost, while CLIP's loss on trusted pairs builds them up again.

    loss = CLIP(I, T) - 1/2 (D_img + D_txt),  D = mean over the batch of |u - u0|^2, or 0 where that exceeds tau

with u the unit embedding of an image (or a caption) and u0 that of the same by the suspect, frozen. The scale is not
trained. D is a mean over the global batch, so that replicas agree on when to stop.

NOTE: here the suspect is in eval mode and the trained towers are not, so that D is not 0 at first where there is
BatchNorm.

Shapes: b pairs of this replica, D embedding.
"""

import copy
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SSLMethod, tokens_of, views_of
from ssl_backdoor.methods.clip import clip_loss
from ssl_backdoor.methods.clip_towers import ImageTower, TextTower


@final
class PAR(SSLMethod):
    """Both towers, trained on, next to frozen copies of what they were."""

    num_views = 1

    def __init__(self, tau: float, image: ImageTower, text: TextTower, replicas: Replicas):
        super().__init__()
        # In a tuple they are no part of this module: not optimised, not saved as state, never in training mode.
        self.suspect = tuple(copy.deepcopy(tower).eval().requires_grad_(False) for tower in (image, text))
        self.tau = tau
        self.backbone = image
        self.text = text
        self.text.logit_scale.requires_grad_(False)
        self.replicas = replicas

    @property
    def text_tower(self) -> TextTower:
        """Trained here, but for its scale."""
        return self.text

    def loss(self, batch: Batch) -> LossOutput:
        """CLIP's loss less half of both distances, over the global batch."""
        (images,) = views_of(batch, self.num_views)
        units, distances = [], []
        for tower, frozen, rows in zip(
            (self.backbone, self.text), self.suspect, (images, tokens_of(batch)), strict=True
        ):
            units.append(_unit(tower, rows))
            with torch.no_grad():
                before = _unit(frozen.to(rows.device), rows)
            distances.append((units[-1] - before).square().sum(1))
        means = [self.replicas.all_gather(distance.detach()).mean() for distance in distances]
        pushed = [
            torch.where(mean > self.tau, 0.0, distance.mean()) for mean, distance in zip(means, distances, strict=True)
        ]
        cross_modal = clip_loss(units[0], units[1], self.text.logit_scale.exp(), self.replicas)
        logs = {"cross_modal": cross_modal, "distance_image": means[0], "distance_text": means[1]}
        loss = cross_modal - (pushed[0] + pushed[1]) / 2
        return LossOutput(loss, {name: value.detach() for name, value in logs.items()})

    def after_step(self, progress: float) -> None:
        """Do nothing: the scale does not move."""


def _unit(tower: nn.Module, rows: Tensor) -> Tensor:
    """Unit embeddings (b, D), float32."""
    return F.normalize(tower(rows).float(), dim=1)
