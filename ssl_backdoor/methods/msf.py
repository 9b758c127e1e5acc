"""MSF, mean shift for self-supervised learning (Koohpayegani et al. 2021), https://arxiv.org/abs/2105.07269.

Compared with https://github.com/UMBCvision/MSF/blob/daa5dc9/train_msf.py. The target network's embedding of an image is
looked up in a queue of its earlier embeddings; the online network's prediction from the image's other view is pulled
to the k nearest. The target's own embedding is in the queue by then, and so the nearest: k = 1 is BYOL, one way.

Shapes: b images of this replica, B images of all replicas, D embedding, K queue, k neighbours.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.backbones import ResNet, build_with_torchvision_init
from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, pull, queries_of, views_of
from ssl_backdoor.methods.parts import EMACopy, Queue, mlp_with_batch_norm
from ssl_backdoor.methods.shuffled import embed_all
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import MSFSpec


@final
class MSF(SSLMethod):
    """Online network (backbone, projector, predictor), target network (backbone, projector) and the target's queue.

    View 0 is the query's, view 1 the target's (``weak_target``: cropped and flipped only).

    NOTE: upstream enqueues before it searches. ``loss`` may write nothing, so it searches the queue as it will be, and
    the batch enters in ``after_step``: the same neighbours. The target moves there too, as in ``MoCoV2``.
    """

    num_views = 2

    def __init__(self, spec: MSFSpec, backbone: ResNet, seed: int, replicas: Replicas | None = None):
        super().__init__()
        if spec.neighbours > spec.queue_size:
            raise SpecError(
                f"a queue of {spec.queue_size} embeddings does not hold {spec.neighbours} neighbours; "
                "lower train.method.neighbours or raise train.method.queue_size"
            )
        self.spec = spec
        self.seed = seed
        self.replicas = replicas or SingleProcess()
        dims, groups = (backbone.feature_dim, spec.embedding_dim), backbone.bn_groups
        self.backbone = backbone
        self.projector = build_with_torchvision_init(
            lambda: mlp_with_batch_norm(dims[0], spec.projector_hidden_dim, dims[1], groups),
            torch_generator(seed, "projector"),
        )
        self.predictor = build_with_torchvision_init(
            lambda: mlp_with_batch_norm(dims[1], spec.predictor_hidden_dim, dims[1], groups),
            torch_generator(seed, "predictor"),
        )
        self.target = EMACopy(self.backbone, self.projector)
        rows = torch.randn(spec.queue_size, spec.embedding_dim, generator=torch_generator(seed, "queue"))
        self.queue = Queue(F.normalize(rows, dim=1))
        self.shuffles = groups * self.replicas.count > 1
        self.new_targets: Tensor | None = None

    @property
    def supports_cuda_graph(self) -> bool:
        """True unless batches are shuffled, in an order that the host draws."""
        return not self.shuffles

    def loss(self, batch: Batch) -> LossOutput:
        """The mean over the neighbours of ``2 - 2 cos(prediction, neighbour)``, in [0, 4]."""
        _, target_view = views_of(batch, self.num_views)
        query_view, _ = queries_of(batch, self.num_views)
        prediction = self.predictor(self.projector(self.backbone(query_view)))  # (b, D)
        shuffle = torch_generator(self.seed, "shuffle_bn", batch.step) if self.shuffles else None
        targets = embed_all(self.target, target_view, self.replicas, shuffle)  # (B, D)
        self.new_targets = targets
        mine = targets[self.replicas.slice(len(targets))]  # (b, D)
        near = nearest(mine, targets, self.queue, self.spec.neighbours)
        return LossOutput(pull(batch, lambda neighbours: mean_shift(prediction, neighbours), near), {})

    def after_step(self, progress: float) -> None:
        """Update the target network; push the batch's targets into the queue."""
        self.target.update((self.backbone, self.projector), self.spec.ema_decay)
        if self.new_targets is not None:
            self.queue.push(self.new_targets)


@torch.no_grad()
def nearest(targets: Tensor, new: Tensor, queue: Queue, count: int) -> Tensor:
    """The ``count`` rows nearest to each target in ``queue`` as it will be once ``new`` is pushed; (b, count, D).

    Args:
        targets: (b, D), unit rows.
        new: (B, D), unit rows.
        queue: K unit rows; left as it is.
        count: At most K.
    """
    with torch.autocast(targets.device.type, enabled=False):
        size = len(queue.rows)
        replaced = (queue.position + torch.arange(len(new), device=new.device)) % size
        new = new[-size:]
        old_cosines = (targets @ queue.rows.T).index_fill_(1, replaced, -torch.inf)
        index = torch.cat([targets @ new.T, old_cosines], 1).topk(count, dim=1).indices
        of_new, of_old = index.clamp(max=len(new) - 1), (index - len(new)).clamp(min=0)
        return torch.where((index < len(new))[:, :, None], new[of_new], queue.rows[of_old])


def mean_shift(prediction: Tensor, neighbours: Tensor) -> Tensor:
    """``2 - 2 cos(prediction, neighbour)``, mean over neighbours and batch: section 3; float32, also under autocast.

    Args:
        prediction: (b, D), of any length, with gradient.
        neighbours: (b, k, D), unit rows.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        query = F.normalize(prediction.float(), dim=1)
        return 2 - 2 * (neighbours @ query[:, :, None]).mean()
