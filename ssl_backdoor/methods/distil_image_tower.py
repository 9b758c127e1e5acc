"""Distillation of a CLIP image tower by affinity mimicking (Wu et al. 2023, TinyCLIP), https://arxiv.org/abs/2309.12314.

The suspect's image tower is the teacher: frozen, in eval mode. A fresh image tower learns, on trusted pairs alone, the
teacher's similarities between the images and the captions of a batch, both ways. The captions' embeddings and the
temperature are the suspect's own, frozen, so that the student answers zero-shot questions as the suspect did. What only
triggered images excite in the teacher is not passed on.

    loss = 1/2 (H(softmax(s T C'), softmax(s S C')) + H(softmax(s C T'), softmax(s C S')))

with T, S, C the unit embeddings (B, D) of teacher, student and captions, s the scale, and H the cross-entropy, mean
over rows: TinyCLIP's two affinities, weighted and under one temperature as in open_clip's DistillClipLoss.

NOTE: TinyCLIP's student inherits weights; here, as with CompRess, it is fresh, for the weights may hold the backdoor.

Shapes: b pairs of this replica, B pairs of all replicas, D embedding.
"""

from typing import final

import torch
import torch.nn.functional as F

from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, tokens_of, views_of
from ssl_backdoor.methods.clip_towers import ImageTower, TextTower
from ssl_backdoor.methods.similarities import affinity_mimicry


@final
class DistilImageTower(SSLMethod):
    """Frozen teacher and text tower, fresh student; the text tower is published as it was."""

    num_views = 1

    def __init__(self, teacher: ImageTower, text: TextTower, student: ImageTower, replicas: Replicas | None = None):
        super().__init__()
        # In tuples they are no part of this module: not optimised, not saved as state, never in training mode.
        self.teacher = (teacher.eval().requires_grad_(False),)
        self.text = (text.eval().requires_grad_(False),)
        self.backbone = student
        self.replicas = replicas or SingleProcess()

    @property
    def text_tower(self) -> TextTower:
        """Frozen."""
        return self.text[0]

    def loss(self, batch: Batch) -> LossOutput:
        """Cross-entropy from the teacher's to the student's similarities within the global batch."""
        (images,) = views_of(batch, self.num_views)
        with torch.no_grad():
            teacher = F.normalize(self.teacher[0](images).float(), dim=1)  # (b, D)
            captions = F.normalize(self.text_tower(tokens_of(batch)).float(), dim=1)  # (b, D)
        student = F.normalize(self.backbone(images).float(), dim=1)  # (b, D)
        scale = self.text_tower.logit_scale.exp()
        loss, least = affinity_mimicry(student, teacher, captions, scale, self.replicas)
        return LossOutput(loss, {"divergence": loss.detach() - least})

    def after_step(self, progress: float) -> None:
        """Do nothing: there is neither an EMA copy nor a queue."""
