"""What each step sees: a pure function of the seed and the step, so that resuming needs no state.

Order and view parameters are drawn for the global batch; a replica takes its contiguous share of both. So the images,
their views and their BatchNorm groups are the same on any number of replicas.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ssl_backdoor.data.streamed import Streamed
from ssl_backdoor.data.views import ViewParameters, apply, draw_parameters
from ssl_backdoor.methods.base import Batch, Replicas
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import ViewsSpec
from ssl_backdoor.train.training_set import Captions

AT_ONCE_PX = 2**17
"""Views of so many pixels are made in one go, of one step or of several small ones: on 16 px images, where calling the
operators costs as much as their work, a view of eight steps of 64 at once takes a third of the time."""


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
        images: (N, 3, H, W) uint8, on ``device`` or on the CPU; streamed ones are read ahead.
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
    largest_px = (share.stop - share.start) * max(spec.size_px**2 for spec in views)
    group_size = max(1, AT_ONCE_PX // largest_px)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> Tensor:
        return torch.randperm(len(images), generator=torch_generator(seed, "order", epoch))

    def rows_at(step: int) -> Tensor:
        epoch, position = divmod(step, steps_per_epoch)
        return order(epoch)[position * batch_size : (position + 1) * batch_size]

    def steps_of(group: int) -> range:
        return range(group * group_size, (group + 1) * group_size)

    def rows_of(group: int) -> Tensor:
        return torch.cat([rows_at(step)[share] for step in steps_of(group)])

    def parameters_at(step: int) -> list[ViewParameters]:
        generator = torch_generator(seed, "views", step)
        return [draw_parameters(batch_size, height, width, spec, generator).rows(share) for spec in views]

    @functools.lru_cache(maxsize=1)
    def views_of(group: int) -> list[tuple[Tensor, ...]]:
        """Of each step of the group the views."""
        mine = _pixels(images, rows_of, group).to(device, non_blocking=True)
        parameters = [
            ViewParameters.joined(of_view) for of_view in zip(*map(parameters_at, steps_of(group)), strict=True)
        ]
        made = [apply(mine, drawn, spec) for drawn, spec in zip(parameters, views, strict=True)]
        parts = [view.contiguous(memory_format=torch.channels_last).chunk(group_size) for view in made]
        return list(zip(*parts, strict=True))

    def batch(step: int) -> Batch:
        group, place = divmod(step, group_size)
        tokens = None
        if captions is not None:
            drawn = captions.draw(rows_at(step), torch_generator(seed, "caption", step))
            tokens = drawn[share].to(device, non_blocking=True)
        return Batch(views_of(group)[place], step, tokens)

    return batch


def _pixels(images: Tensor | Streamed, rows_of: Callable[[int], Tensor], group: int) -> Tensor:
    rows = rows_of(group)
    if isinstance(images, Tensor):
        return images[rows.to(images.device)]
    found = images[rows]
    images.prefetch(rows_of(group + 1))
    return found
