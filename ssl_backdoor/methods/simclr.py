"""SimCLR (Chen et al. 2020), https://arxiv.org/abs/2002.05709.

Compared with https://github.com/google-research/simclr/blob/244e712 (model_util.py, objective.py). A view's positive is
the other view of its image; the views of all other images of the global batch are its negatives.

Shapes: b images of this replica, B images of all replicas, D embedding.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import nn

from ssl_backdoor.methods.backbones import ResNet, batch_norm_1d, build_with_torchvision_init
from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, queries_of, views_of
from ssl_backdoor.methods.losses import nt_xent
from ssl_backdoor.methods.parts import mlp_with_batch_norm
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import SimCLRSpec


@final
class SimCLR(SSLMethod):
    """Backbone and a two-layer projector that ends in BatchNorm; both views pass them as one batch, as upstream.

    NOTE: upstream's linear layers have no bias and its last BatchNorm has no shift. Here they have, as PyTorch's own
    modules: BatchNorm takes the biases out again, and the shift starts at 0.

    NOTE: upstream draws linear weights with deviation 0.01; here they are drawn as in every other method's projector,
    since BatchNorm after each layer takes their scale out.

    NOTE: upstream adds the losses of the two views' halves; here they are averaged, as in the paper.
    """

    num_views = 2

    def __init__(self, spec: SimCLRSpec, backbone: ResNet, seed: int, replicas: Replicas | None = None):
        super().__init__()
        self.spec = spec
        self.replicas = replicas or SingleProcess()
        self.backbone = backbone
        dim_in, groups = backbone.feature_dim, backbone.bn_groups
        self.projector = build_with_torchvision_init(
            lambda: nn.Sequential(
                mlp_with_batch_norm(dim_in, spec.projector_hidden_dim, spec.embedding_dim, groups),
                batch_norm_1d(spec.embedding_dim, groups),
            ),
            torch_generator(seed, "projector"),
        )

    @property
    def supports_cuda_graph(self) -> bool:
        """True: every step launches the same kernels."""
        return True

    def loss(self, batch: Batch) -> LossOutput:
        """NT-Xent of this replica's 2b views among the 2B of all; where views are mixed, the first of each image is."""
        (first_view, _), (_, second_view) = queries_of(batch, self.num_views), views_of(batch, self.num_views)
        # Image by image, so that a BatchNorm group holds both views of its images however many replicas there are.
        views = torch.stack((first_view, second_view), 1).flatten(0, 1)  # (2b, 3, S, S)
        own = F.normalize(self.projector(self.backbone(views)).float(), dim=1)  # (2b, D)
        everyone = self.replicas.all_gather_with_grad(own)  # (2B, D)
        first = self.replicas.slice(len(everyone)).start
        loss = nt_xent(own, everyone, first, self.spec.temperature)
        if (mix := batch.mix) is not None:
            # A mixed view belongs to its partner's plain one as well, and that one to it.
            partners = torch.stack((2 * mix.partner + 1, 2 * mix.partner.argsort()), 1).flatten()
            other = nt_xent(own, everyone, first, self.spec.temperature, partners)
            loss = mix.share * loss + (1 - mix.share) * other
        return LossOutput(loss, {})

    def after_step(self, progress: float) -> None:
        """Do nothing: there is neither an EMA copy nor a queue."""
