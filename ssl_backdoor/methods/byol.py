"""BYOL (Grill et al. 2020), https://arxiv.org/abs/2006.07733, as in Saha et al.'s code.

Compared with https://github.com/htdt/self-supervised/blob/2740956/methods/byol.py, which Saha et al. train with
https://github.com/UMBCvision/SSL-Backdoor/blob/e73b3a3/byol/train.py. The online network predicts, from one view, what
the slow target network says of the other; after training the online backbone is kept.
"""

import math
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor

from ssl_backdoor.methods.backbones import ResNet, build_with_torchvision_init
from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, pull, queries_of, views_of
from ssl_backdoor.methods.losses import byol_regression
from ssl_backdoor.methods.parts import EMACopy, mlp_with_batch_norm
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import BYOLSpec, TrainSpec


@final
class BYOL(SSLMethod):
    """Online network (backbone, projector, predictor) and target network (backbone, projector).

    Each view passes each network alone: BatchNorm never mixes two views. The target stays in training mode: its
    statistics are those of its batch, its running ones are its own and unused.

    Upstream (byol/model.py) spreads the encoders over devices, not the heads: their BatchNorm sees the whole batch
    (``heads_see`` "batch"). Features of all replicas are then gathered, and each runs the heads on all of them.
    """

    num_views = 2

    @classmethod
    def build(cls, train: TrainSpec, seed: int, replicas: Replicas | None = None) -> "BYOL":
        """See the base; the target's decay rises over all epochs."""
        spec: Any = train.method
        replicas = replicas or SingleProcess()
        return cls(spec, cls.fresh_backbone(train, seed, replicas), train.fit.epochs, seed, replicas)

    def __init__(self, spec: BYOLSpec, backbone: ResNet, epochs: int, seed: int, replicas: Replicas | None = None):
        super().__init__()
        self.spec = spec
        self.replicas = replicas or SingleProcess()
        groups = 1 if spec.heads_see == "batch" else backbone.bn_groups
        self.epochs = epochs
        self.backbone = backbone
        self.projector = build_with_torchvision_init(
            lambda: mlp_with_batch_norm(backbone.feature_dim, spec.projector_hidden_dim, spec.embedding_dim, groups),
            torch_generator(seed, "projector"),
        )
        self.predictor = build_with_torchvision_init(
            lambda: mlp_with_batch_norm(spec.embedding_dim, spec.predictor_hidden_dim, spec.embedding_dim, groups),
            torch_generator(seed, "predictor"),
        )
        self.target = EMACopy(self.backbone, self.projector)

    @property
    def supports_cuda_graph(self) -> bool:
        """True: every step launches the same kernels."""
        return True

    def loss(self, batch: Batch) -> LossOutput:
        """The sum over both directions of ``2 - 2 cos(online(view), target(other view))``, in [0, 8]."""
        first, second = views_of(batch, self.num_views)
        queries = queries_of(batch, self.num_views)
        forward, backward = (
            pull(batch, partial(byol_regression, self._online(query)), self._target(other))
            for query, other in zip(queries, (second, first), strict=True)
        )
        return LossOutput(forward + backward, {})

    def after_step(self, progress: float) -> None:
        """Update the target network."""
        self.target.update((self.backbone, self.projector), ema_decay(self.spec, progress, self.epochs))

    def _online(self, view: Tensor) -> Tensor:
        features = self.backbone(view)
        if self.spec.heads_see == "group":
            return self._predict(features)
        predictions = self._predict(self.replicas.all_gather_with_grad(features))
        return predictions[self.replicas.slice(len(predictions))]

    def _predict(self, features: Tensor) -> Tensor:
        prediction: Tensor = self.predictor(self.projector(features))
        return prediction

    @torch.no_grad()
    def _target(self, view: Tensor) -> Tensor:
        embeddings: Tensor
        if self.spec.heads_see == "group":
            embeddings = self.target(view)
            return embeddings
        backbone, projector = self.target.networks
        embeddings = projector(self.replicas.all_gather(backbone(view)))
        return embeddings[self.replicas.slice(len(embeddings))]


def ema_decay(spec: BYOLSpec, progress: float, epochs: int) -> float:
    """``1 - (1 - start) * (cos(pi * progress) + 1) / 2``, by epoch with the progress of the epoch's start."""
    per: Literal["epoch", "step"] = spec.ema_per
    if per == "epoch":  # the small term mends k * steps_per_epoch / num_steps falling just short of k / epochs
        progress = math.floor(progress * epochs + 1e-6) / epochs
    return 1 - (1 - spec.ema_decay_start) * (math.cos(math.pi * progress) + 1) / 2
