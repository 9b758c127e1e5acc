"""RotNet (Gidaris et al. 2018), https://arxiv.org/abs/1803.07728, as in Saha et al.'s code.

Compared with https://github.com/UMBCvision/SSL-Backdoor/blob/f01c9bf/rotnet/dataloader.py and architectures/ResNet.py.
Each view is seen turned by 0, 90, 180 and 270 degrees, counter-clockwise; a linear head says by which (equation 2).

Shapes: b images of this replica, S side of a view.
"""

from typing import final

import torch
from torch import Tensor, nn

from ssl_backdoor.methods.backbones import ResNet, build_with_torchvision_init
from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, views_of
from ssl_backdoor.methods.pretext import classify
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import RotNetSpec

NUM_ROTATIONS = 4


@final
class RotNet(SSLMethod):
    """Backbone and one linear head of four classes; a step passes ``4 b`` images."""

    num_views = 1

    def __init__(self, spec: RotNetSpec, backbone: ResNet, seed: int, replicas: Replicas | None = None):
        super().__init__()
        self.spec = spec
        self.replicas = replicas or SingleProcess()
        self.backbone = backbone
        self.head = build_with_torchvision_init(
            lambda: nn.Linear(backbone.feature_dim, NUM_ROTATIONS), torch_generator(seed, "head")
        )

    @property
    def supports_cuda_graph(self) -> bool:
        """True: every step launches the same kernels."""
        return True

    def loss(self, batch: Batch) -> LossOutput:
        """Cross-entropy over the four rotations, mean over rotations and batch."""
        (view,) = views_of(batch, self.num_views)
        logits = self.head(self.backbone(rotations(view)))
        labels = torch.arange(NUM_ROTATIONS, device=view.device).repeat(len(view))
        return classify(logits, labels, self.replicas)

    def after_step(self, progress: float) -> None:
        """Do nothing: there is neither an EMA copy nor a queue."""


def rotations(view: Tensor) -> Tensor:
    """(b, 3, S, S) to (4 b, 3, S, S), an image's four rotations side by side, so that no BatchNorm group parts them."""
    turned = torch.stack([view.rot90(turns, (2, 3)) for turns in range(NUM_ROTATIONS)], 1)
    return turned.flatten(0, 1).contiguous(memory_format=torch.channels_last)
