"""What each step sees: a pure function of the seed and the step, so that resuming needs no state.

Order and view parameters are drawn for the global batch; a replica takes its contiguous share of both. So the images,
their views and their BatchNorm groups are the same on any number of replicas.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ssl_backdoor.data.views import apply, draw_parameters
from ssl_backdoor.methods.base import Batch, Replicas
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import FitSpec


def make_batches(
    images: Tensor, fit: FitSpec, num_views: int, seed: int, replicas: Replicas, device: torch.device
) -> Callable[[int], Batch]:
    """A function from step to this replica's batch.

    Each epoch is a fresh permutation of all images, the incomplete last batch dropped: stream ("order", epoch). The
    views of a step come from stream ("views", step).

    Args:
        images: (N, 3, H, W) uint8, on ``device`` or on the CPU.
        fit: Batch size and views.
        num_views: Views of each image.
        seed: Names the streams.
        replicas: Which share of the batch this process takes.
        device: Where views are made.
    """
    steps_per_epoch = len(images) // fit.batch_size
    share = replicas.slice(fit.batch_size)
    height, width = images.shape[-2:]

    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        return torch.randperm(len(images), generator=torch_generator(seed, "order", epoch))

    def batch(step: int) -> Batch:
        epoch, position = divmod(step, steps_per_epoch)
        rows = order(epoch)[position * fit.batch_size : (position + 1) * fit.batch_size][share]
        mine = images[rows.to(images.device)].to(device, non_blocking=True)
        generator = torch_generator(seed, "views", step)
        drawn = [draw_parameters(fit.batch_size, height, width, fit.views, generator) for _ in range(num_views)]
        views = [apply(mine, parameters.rows(share), fit.views) for parameters in drawn]
        return Batch(tuple(view.contiguous(memory_format=torch.channels_last) for view in views), step)

    return batch
