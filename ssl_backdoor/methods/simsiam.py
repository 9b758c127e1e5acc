"""SimSiam (Chen & He 2020), https://arxiv.org/abs/2011.10566.

Compared with https://github.com/facebookresearch/simsiam/blob/39ac33e/simsiam/builder.py. Each view's prediction is
pulled to the other view's projection, through which no gradient flows.

Shapes: b images of this replica, D embedding.
"""

from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.methods.backbones import ResNet, batch_norm_1d, build_with_torchvision_init
from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, pull, queries_of, views_of
from ssl_backdoor.methods.losses import negative_cosine
from ssl_backdoor.methods.parts import batch_norm_no_affine, mlp_with_batch_norm
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import SimSiamSpec


@final
class SimSiam(SSLMethod):
    """Backbone, a three-layer projector with BatchNorm after every layer, and a predictor; each view passes alone.

    NOTE: upstream's projector is as wide as the backbone's features; here it is ``projector_hidden_dim`` wide.

    NOTE: upstream's linear layers ahead of BatchNorm have no bias; here they have one, which BatchNorm takes out again.

    NOTE: upstream starts each residual block as its shortcut (``zero_init_residual``) and can hold the predictor's
    learning rate constant; here backbone and schedule are those of every other method.
    """

    num_views = 2

    def __init__(self, spec: SimSiamSpec, backbone: ResNet, seed: int, replicas: Replicas | None = None):
        super().__init__()
        self.spec = spec
        self.replicas = replicas or SingleProcess()
        self.backbone = backbone
        dim_in, hidden, groups = backbone.feature_dim, spec.projector_hidden_dim, backbone.bn_groups
        self.projector = build_with_torchvision_init(
            lambda: nn.Sequential(
                mlp_with_batch_norm(dim_in, hidden, hidden, groups),
                batch_norm_1d(hidden, groups),
                nn.ReLU(inplace=True),
                nn.Linear(hidden, spec.embedding_dim),
                batch_norm_no_affine(spec.embedding_dim, groups),
            ),
            torch_generator(seed, "projector"),
        )
        self.predictor = build_with_torchvision_init(
            lambda: mlp_with_batch_norm(spec.embedding_dim, spec.predictor_hidden_dim, spec.embedding_dim, groups),
            torch_generator(seed, "predictor"),
        )

    @property
    def supports_cuda_graph(self) -> bool:
        """True: every step launches the same kernels."""
        return True

    def loss(self, batch: Batch) -> LossOutput:
        """The mean over both directions of ``-cos(prediction, projection of the other view)``, in [-1, 1].

        Logs ``embedding_std`` (``embedding_std``) of the global batch's first view.
        """
        first, second = (self.projector(self.backbone(view)) for view in queries_of(batch, self.num_views))  # (b, D)
        targets = [first.detach(), second.detach()]
        if batch.mix is not None:  # those of the plain views
            with torch.no_grad():
                targets = [self.projector(self.backbone(view)) for view in views_of(batch, self.num_views)]
        forward = pull(batch, partial(negative_cosine, self.predictor(first)), targets[1])
        backward = pull(batch, partial(negative_cosine, self.predictor(second)), targets[0])
        return LossOutput((forward + backward) / 2, {"embedding_std": embedding_std(self.replicas.all_gather(first))})

    def after_step(self, progress: float) -> None:
        """Do nothing: there is neither an EMA copy nor a queue."""


def embedding_std(embeddings: Tensor) -> Tensor:
    """The standard deviation of unit-length embeddings per dimension, mean over the dimensions (section 4.1).

    Embeddings (B, D) of any length. 0: all images share one embedding; 1 / sqrt(D): directions are spread evenly.
    """
    return F.normalize(embeddings.detach().float(), dim=1).std(0, correction=0).mean()
