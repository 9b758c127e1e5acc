"""Replicas of one training over ``torch.distributed``: the only file that knows it."""

import atexit
import datetime
import os
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_backdoor.errors import SpecError
from ssl_backdoor.methods.base import Replicas, SingleProcess
from ssl_backdoor.specs import Resources


@final
class DistributedReplicas(Replicas):
    """The processes of the default process group, in rank order."""

    def __init__(self, device: torch.device) -> None:
        self.count = dist.get_world_size()
        self.index = dist.get_rank()
        self.device = device

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows of all replicas in rank order, without gradient."""
        mine = rows.detach().contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(parts, mine)
        return torch.cat(parts)

    def all_gather_with_grad(self, rows: Tensor) -> Tensor:
        """The rows of all replicas in rank order; their gradients are summed over the replicas."""
        gather: Callable[[Tensor, DistributedReplicas], Tensor] = _AllGather.apply
        return gather(rows, self)

    def all_to_all_rows(self, rows: Tensor, order: Tensor) -> Tensor:
        """This replica's part of all rows in that order; one all-to-all."""
        size = len(rows)
        taken = order.view(self.count, size)
        owner = taken // size
        given = [taken[i][owner[i] == self.index] - self.index * size for i in range(self.count)]
        sources = owner[self.index]
        received = torch.empty_like(rows, memory_format=torch.contiguous_format)
        dist.all_to_all_single(
            received,
            rows.detach()[torch.cat(given).to(rows.device)].contiguous(),
            output_split_sizes=sources.bincount(minlength=self.count).tolist(),
            input_split_sizes=[len(each) for each in given],
        )
        return received[sources.argsort(stable=True).argsort().to(rows.device)]

    def all_reduce_mean_(self, tensors: Sequence[Tensor]) -> None:
        """One all-reduce of the flattened tensors, then each takes its part of the mean."""
        if not tensors:
            return
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(flat)
            parts = torch.split_with_sizes(flat.div_(self.count), [tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Replica 0's ``data``, broadcast."""
        size = torch.tensor([len(data)], device=self.device)
        dist.broadcast(size, 0)
        if not size.item():
            return b""
        buffer = torch.empty(int(size.item()), dtype=torch.uint8, device=self.device)
        if self.index == 0:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(buffer, 0)
        return buffer.cpu().numpy().tobytes()


@final
class _AllGather(torch.autograd.Function):
    """``DistributedReplicas.all_gather`` that passes each row the sum of the gradients it has on all replicas."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: DistributedReplicas) -> Tensor:
        ctx.group = group
        return group.all_gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        group: DistributedReplicas = ctx.group
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[group.slice(len(total))], None


def connect(resources: Resources, device: torch.device) -> Replicas:
    """The replicas of this training.

    A process group that is there (Ray Train) is used; under ``torchrun`` one is opened (gloo, or nccl on CUDA) and
    stays open for the process's life, since torch cannot safely open a second one there; a plain process is alone, and
    so is one that asks for no other, whatever a batch system has left in its environment.

    Raises:
        SpecError: ``resources.workers`` is not the number of processes that are really there.
    """
    is_launched = resources.workers > 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_launched and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(minutes=10))
        atexit.register(dist.destroy_process_group)
    together = dist.is_initialized() and dist.get_world_size() > 1
    replicas = DistributedReplicas(device) if together else SingleProcess()
    if replicas.count != resources.workers:
        raise SpecError(
            f"resources ask for {resources.workers} worker(s), but {replicas.count} process(es) train together; "
            "start that many (torchrun --nproc-per-node, or Ray) or set workers to what is there"
        )
    return replicas
