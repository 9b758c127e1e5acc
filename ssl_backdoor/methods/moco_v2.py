"""MoCo v2 (Chen et al. 2020), https://arxiv.org/abs/2003.04297, as in Saha et al.'s code.

Compared with https://github.com/UMBCvision/SSL-Backdoor/blob/0dfdbda/moco/moco/builder.py. Two encoders, query and key,
start equal; the key encoder follows the query encoder slowly. A query's positive is the key of its image's other
view, its negatives are the queue of older keys.

Shapes: b images of this replica, B images of all replicas, D embedding, K queue.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.methods.backbones import ResNet, build_with_torchvision_init
from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, pull, queries_of, views_of
from ssl_backdoor.methods.losses import info_nce
from ssl_backdoor.methods.parts import EMACopy, Queue, mlp
from ssl_backdoor.methods.shuffled import embed_all
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import MoCoV2Spec


@final
class MoCoV2(SSLMethod):
    """Query and key encoders (backbone and a two-layer projector) and the queue of keys.

    NOTE: upstream moves the key encoder at the start of the next forward pass (builder.py, line 151). Here it moves
    right after the update, which is the same sequence: the first move upstream is between equal encoders.

    NOTE: upstream needs K % B == 0. Here the queue is a ring (``Queue``) and any size will do.
    """

    num_views = 2

    def __init__(self, spec: MoCoV2Spec, backbone: ResNet, seed: int, replicas: Replicas | None = None):
        super().__init__()
        self.spec = spec
        self.seed = seed
        self.replicas = replicas or SingleProcess()
        self.backbone = backbone
        self.projector = build_with_torchvision_init(
            lambda: mlp(backbone.feature_dim, spec.projector_hidden_dim, spec.embedding_dim),
            torch_generator(seed, "projector"),
        )
        self.key_encoder = EMACopy(self.backbone, self.projector)
        rows = torch.randn(spec.queue_size, spec.embedding_dim, generator=torch_generator(seed, "queue"))
        self.queue = Queue(F.normalize(rows, dim=1))
        # With one group over all replicas shuffling permutes the sums of the statistics and nothing else.
        self.shuffles = spec.shuffle_bn and backbone.bn_groups * self.replicas.count > 1
        self.new_keys: Tensor | None = None

    @property
    def supports_cuda_graph(self) -> bool:
        """True unless batches are shuffled, in an order that the host draws."""
        return not self.shuffles

    def loss(self, batch: Batch) -> LossOutput:
        """InfoNCE of view 0 as query against view 1 as key and the queue as it was before this batch."""
        _, key_view = views_of(batch, self.num_views)
        query_view, _ = queries_of(batch, self.num_views)
        query = F.normalize(self.projector(self.backbone(query_view)).float(), dim=1)  # (b, D)
        shuffle = torch_generator(self.seed, "shuffle_bn", batch.step) if self.shuffles else None
        keys = embed_all(self.key_encoder, key_view, self.replicas, shuffle)  # (B, D)
        self.new_keys = keys
        key = keys[self.replicas.slice(len(keys))]  # (b, D)
        queue, temperature = self.queue.rows, self.spec.temperature
        return LossOutput(pull(batch, lambda positive: info_nce(query, positive, queue, temperature), key), {})

    def after_step(self, progress: float) -> None:
        """Update the key encoder; push the batch's keys into the queue."""
        self.key_encoder.update((self.backbone, self.projector), self.spec.ema_decay)
        if self.new_keys is not None:
            self.queue.push(self.new_keys)
