"""Shuffled BatchNorm (MoCo, https://arxiv.org/abs/1911.05722, section 3.3): an EMA copy sees the batch in other groups.

Shapes: b images of this replica, B images of all replicas, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.methods.base import Replicas


@torch.no_grad()
def embed_all(encoder: nn.Module, view: Tensor, replicas: Replicas, shuffle: torch.Generator | None) -> Tensor:
    """Unit embeddings of all replicas' images, (B, D), in their order.

    Args:
        encoder: (b, 3, S, S) to (b, D).
        view: (b, 3, S, S), this replica's.
        replicas: Where the other images are.
        shuffle: Draws the order in which BatchNorm's groups see the images, equal on all replicas; None: as they are.
    """
    if shuffle is None:
        return replicas.all_gather(F.normalize(encoder(view).float(), dim=1))
    order = torch.randperm(replicas.count * len(view), generator=shuffle)
    shuffled = replicas.all_gather(F.normalize(encoder(replicas.all_to_all_rows(view, order)).float(), dim=1))
    return shuffled[order.argsort().to(view.device)]
