"""What each step sees: a pure function of the seed and the step, so that resuming needs no state.

Order and view parameters are drawn for the global batch; a replica takes its contiguous share of both. So the images,
their views and their BatchNorm groups are the same on any number of replicas.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ssl_backdoor.data.localized import localize
from ssl_backdoor.data.streamed import Streamed
from ssl_backdoor.data.view_parameters import draw_uniform, parameters_of
from ssl_backdoor.data.views import apply
from ssl_backdoor.device import to_device
from ssl_backdoor.methods.base import Batch, Replicas
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import ViewsSpec
from ssl_backdoor.train.cutmix import cut_mix
from ssl_backdoor.train.training_set import Captions

AT_ONCE_PX = {"cpu": 2**17, "cuda": 2**22}
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
    stretch: Tensor | None = None,
    *,
    mix_p: float = 0.0,
    mix_groups: int = 1,
    crop_margin: float | None = None,
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
        stretch: Of the same N images, as ``TrainingSet``'s.
        mix_p: Share of the steps whose views are mixed, stream ("cutmix", step).
        mix_groups: So many parts of a batch are each mixed within themselves.
        crop_margin: Where the second of two views is cropped near the first, see ``localize``: stream ("localized",
            step). None: anywhere.
    """
    order = _Order(len(images), batch_size, seed)
    share = replicas.slice(batch_size)
    views_at = _Views(images, order, share, views, seed, device, stretch, crop_margin)

    def batch(step: int) -> Batch:
        tokens = None
        if captions is not None:
            drawn = captions.draw(order(step), torch_generator(seed, "caption", step))
            tokens = to_device(drawn[share], device)
        seen, mix = views_at(step), None
        if mix_p:
            mix = cut_mix(seen, torch_generator(seed, "cutmix", step), mix_p, batch_size, mix_groups, share)
        return Batch(seen, step, tokens, step // order.steps_per_epoch, mix)

    return batch


class _Order:
    """The rows of each step, (batch_size,) of all replicas."""

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self.steps_per_epoch = num_images // batch_size
        self._of_epoch = functools.lru_cache(maxsize=2)(
            lambda epoch: torch.randperm(num_images, generator=torch_generator(seed, "order", epoch))
        )

    def __call__(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.steps_per_epoch)
        rows: Tensor = self._of_epoch(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        return rows


class _Views:
    """The views of each step, made for a group of steps at once where they are small."""

    def __init__(
        self,
        images: Tensor | Streamed,
        order: _Order,
        share: slice,
        specs: Sequence[ViewsSpec],
        seed: int,
        device: torch.device,
        stretch: Tensor | None,
        crop_margin: float | None,
    ) -> None:
        self._images = images
        self._order = order
        self._share = share
        self._specs = specs
        self._seed = seed
        self._device = device
        self._stretch = stretch
        self._crop_margin = crop_margin
        step_px = (share.stop - share.start) * max(spec.size_px**2 for spec in specs)
        self._group_size = max(1, AT_ONCE_PX[device.type] // step_px)
        self._group = -1
        self._made: list[tuple[Tensor, ...]] = []

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        group, place = divmod(step, self._group_size)
        if group != self._group:
            self._made = self._make(group)
            self._group = group
        made: tuple[Tensor, ...] = self._made[place]
        return made

    def _make(self, group: int) -> list[tuple[Tensor, ...]]:
        images = to_device(self._pixels(group), self._device)
        drawn = [torch.cat(of_steps) for of_steps in zip(*map(self._drawn, self._steps(group)), strict=True)]
        height, width = images.shape[-2:]
        stretch = None if self._stretch is None else self._stretch[self._rows(group)]
        parameters = [
            parameters_of(uniform, height, width, spec, stretch)
            for uniform, spec in zip(drawn, self._specs, strict=True)
        ]
        if self._crop_margin is not None:
            swaps, least = torch.cat([self._swaps(step) for step in self._steps(group)]), self._specs[0].crop_scale[0]
            first, second = parameters
            parameters = list(localize(first, second, drawn[1], swaps, height, width, least, self._crop_margin))
        made = [apply(images, one, spec) for one, spec in zip(parameters, self._specs, strict=True)]
        parts = [view.contiguous(memory_format=torch.channels_last).chunk(self._group_size) for view in made]
        return list(zip(*parts, strict=True))

    def _drawn(self, step: int) -> list[Tensor]:
        generator = torch_generator(self._seed, "views", step)
        return [draw_uniform(self._order.batch_size, generator)[self._share] for _ in self._specs]

    def _swaps(self, step: int) -> Tensor:
        generator = torch_generator(self._seed, "localized", step)
        return (torch.rand(self._order.batch_size, generator=generator) < 0.5)[self._share]

    def _pixels(self, group: int) -> Tensor:
        rows = self._rows(group)
        if isinstance(self._images, Tensor):
            return self._images[to_device(rows, self._images.device)]
        found = self._images[rows]
        self._images.prefetch(self._rows(group + 1))
        return found

    def _rows(self, group: int) -> Tensor:
        return torch.cat([self._order(step)[self._share] for step in self._steps(group)])

    def _steps(self, group: int) -> range:
        return range(group * self._group_size, (group + 1) * self._group_size)
