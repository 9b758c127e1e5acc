"""What each step sees: a pure function of the seed and the step, so that resuming needs no state.

Order and view parameters are drawn for the global batch; a replica takes its contiguous share of both. So the images,
their views and their BatchNorm groups are the same on any number of replicas.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ssl_backdoor.data.streamed import Streamed
from ssl_backdoor.data.views import apply, draw_parameters
from ssl_backdoor.methods.base import Batch, Replicas
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import ViewsSpec
from ssl_backdoor.train.training_set import Captions


def make_batches(
    images: Tensor | Streamed,
    captions: Captions | None,
    batch_size: int,
    views: Sequence[ViewsSpec],
    seed: int,
    replicas: Replicas,
    device: torch.device,
) -> Callable[[int], Batch]:
    """A function from step to this replica's batch.

    Each epoch is a fresh permutation of all images, the incomplete last batch dropped: stream ("order", epoch). The
    views of a step come from stream ("views", step), the caption that is read of each image from ("caption", step).

    Args:
        images: (N, 3, H, W) uint8, on ``device`` or on the CPU; streamed ones are read one step ahead.
        captions: Of the same N images; None where the method reads none.
        batch_size: Images of one step over all replicas.
        views: One for each view that is made of an image.
        seed: Names the streams.
        replicas: Which share of the batch this process takes.
        device: Where views are made.
    """
    steps_per_epoch = len(images) // batch_size
    share = replicas.slice(batch_size)
    height, width = images.shape[-2:]

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> Tensor:
        return torch.randperm(len(images), generator=torch_generator(seed, "order", epoch))

    def rows_at(step: int) -> Tensor:
        epoch, position = divmod(step, steps_per_epoch)
        return order(epoch)[position * batch_size : (position + 1) * batch_size]

    def batch(step: int) -> Batch:
        mine = _pixels(images, lambda step: rows_at(step)[share], step).to(device, non_blocking=True)
        generator = torch_generator(seed, "views", step)
        drawn = [(draw_parameters(batch_size, height, width, spec, generator), spec) for spec in views]
        made = [apply(mine, parameters.rows(share), spec) for parameters, spec in drawn]
        tokens = None
        if captions is not None:
            drawn_captions = captions.draw(rows_at(step), torch_generator(seed, "caption", step))
            tokens = drawn_captions[share].to(device, non_blocking=True)
        return Batch(tuple(view.contiguous(memory_format=torch.channels_last) for view in made), step, tokens)

    return batch


def _pixels(images: Tensor | Streamed, rows_at: Callable[[int], Tensor], step: int) -> Tensor:
    rows = rows_at(step)
    if isinstance(images, Tensor):
        return images[rows.to(images.device)]
    found = images[rows]
    images.prefetch(rows_at(step + 1))
    return found
