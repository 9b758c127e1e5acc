"""The parts methods are composed of: projectors, EMA copies and queues."""

import copy
from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from ssl_backdoor.methods.backbones import SplitBatchNorm, batch_norm_1d


def mlp(dim_in: int, hidden_dim: int, dim_out: int) -> nn.Sequential:
    """Linear, ReLU, Linear: (B, dim_in) to (B, dim_out)."""
    return nn.Sequential(nn.Linear(dim_in, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, dim_out))


def mlp_with_batch_norm(dim_in: int, hidden_dim: int, dim_out: int, bn_groups: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear: (B, dim_in) to (B, dim_out)."""
    return nn.Sequential(
        nn.Linear(dim_in, hidden_dim),
        batch_norm_1d(hidden_dim, bn_groups),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, dim_out),
    )


def batch_norm_no_affine(channels: int, bn_groups: int) -> nn.Module:
    """BatchNorm for (B, C) without learnable scale and shift."""
    if bn_groups == 1:
        return nn.BatchNorm1d(channels, affine=False)
    norm = SplitBatchNorm(channels, bn_groups)
    norm.affine = False
    norm.register_parameter("weight", None)
    norm.register_parameter("bias", None)
    return norm


@final
class EMACopy(nn.Module):
    """An exponential moving average (momentum encoder) of ``networks``, in series, without gradient.

    Only parameters are averaged: BatchNorm's running statistics are the copy's own.
    """

    def __init__(self, *networks: nn.Module):
        super().__init__()
        self.networks = copy.deepcopy(nn.Sequential(*networks)).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The copy's output for ``x``, without gradient."""
        y: Tensor = self.networks(x)
        return y

    @torch.no_grad()
    def update(self, networks: Iterable[nn.Module], ema_decay: float) -> None:
        """``copy = ema_decay * copy + (1 - ema_decay) * networks``, parameter by parameter."""
        sources: list[Tensor] = [p for network in networks for p in network.parameters()]
        copies: list[Tensor] = list(self.networks.parameters())
        torch._foreach_lerp_(copies, sources, 1 - ema_decay)


@final
class Queue(nn.Module):
    """The newest ``size`` embeddings, first in, first out.

    A ring buffer: a push that passes the end continues at the start, so ``size`` need not be a multiple of the batch.
    ``rows`` (size, D) are in storage order, which no loss depends on.
    """

    rows: Tensor
    position: Tensor

    def __init__(self, rows: Tensor):
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Take in ``rows`` (B, D) in order, in place of the oldest; of more than ``size`` rows the last stay."""
        size = len(self.rows)
        kept = rows[-size:]
        skipped = len(rows) - len(kept)
        slots = (self.position + skipped + torch.arange(len(kept), device=rows.device)) % size
        self.rows.index_copy_(0, slots, kept.to(self.rows.dtype))
        self.position.add_(len(rows)).remainder_(size)
