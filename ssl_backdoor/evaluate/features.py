"""What a frozen backbone makes of images, with and without a trigger."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from ssl_backdoor.allocator import retain_freed_memory
from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.data.resident import Resident, load_resident
from ssl_backdoor.data.views import evaluation_view
from ssl_backdoor.errors import CheckpointError
from ssl_backdoor.poison.triggers.tensors import apply_to_tensor
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import EvaluationSpec, TriggerSpec

_BATCH = 256
_CHUNK = 1024  # images read at once; so many are seen by the backbone meanwhile


class Condition(NamedTuple):
    """A name of the evaluation's vocabulary and the trigger that makes it (None: clean)."""

    name: str
    trigger: TriggerSpec | None = None
    source: bytes | None = None


class Features(NamedTuple):
    """``values[condition]`` float32 (N, D), not normalised; ``labels`` int64 (N,); ``keys`` (N,)."""

    keys: pa.ChunkedArray
    labels: Tensor
    values: dict[str, Tensor]


class OfPlainImages(nn.Module):
    """A frozen backbone that takes plain images: (B, 3, H, W), uint8 from 0 to 255 or float in [0, 1]."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        """Of images normalised by ImageNet's mean and standard deviation, as ``load_backbone`` gives it."""

    def forward(self, images: Tensor) -> Tensor:
        """Features float32 (B, D), not normalised; floats are rounded to the 256 levels of an image."""
        levels = images.mul(255).round().clamp(0, 255).to(torch.uint8) if images.is_floating_point() else images
        values: Tensor = self.backbone(evaluation_view(levels).contiguous(memory_format=torch.channels_last)).float()
        return values


def split_features(
    backbone: nn.Module,
    dataset: Dataset,
    split: str,
    conditions: Sequence[Condition],
    spec: EvaluationSpec,
    seed: int,
    on_progress: OnProgress = silent,
) -> Features:
    """Features of the labelled images of ``split``, in the order of the samples table, under each of ``conditions``.

    Images are read once and held two thousand at a time. ``backbone`` runs on the device it is on.

    Raises:
        DataError: an image cannot be read, or the sizes differ.
        SpecError: a trigger is larger than the evaluated frame.
        CheckpointError: the backbone's features are not finite.
    """
    samples = labelled(dataset, split)
    values: dict[str, Tensor] = {}
    done = 0
    with retain_freed_memory():
        for images in _read_ahead(dataset, samples, split, spec):
            for condition in conditions:
                found = features(backbone, stamped_batches(images, condition, seed))
                held = values.setdefault(condition.name, torch.empty(samples.num_rows, found.shape[1]))
                held[done : done + len(found)] = found
            done += len(images.keys)
            on_progress(Progress(done, samples.num_rows, f"{split} images"))
    labels = torch.from_numpy(samples["label"].to_numpy().astype(np.int64))
    return Features(samples["key"], labels, values)


def _read_ahead(dataset: Dataset, samples: pa.Table, split: str, spec: EvaluationSpec) -> Iterator[Resident]:
    """The images of ``samples`` in the evaluated frame, a chunk at a time; the next one is read meanwhile."""
    chunks = [replace(dataset, samples=samples.slice(start, _CHUNK)) for start in range(0, samples.num_rows, _CHUNK)]
    read = partial(
        load_resident, split=split, resize_px=spec.resize_px, crop_px=spec.crop_px, interpolation=spec.interpolation
    )
    with ThreadPoolExecutor(1) as reader:
        ahead = deque([reader.submit(read, chunks[0])])
        for chunk in chunks[1:]:
            ahead.append(reader.submit(read, chunk))
            yield ahead.popleft().result()
        yield ahead.popleft().result()


def labelled(dataset: Dataset, split: str) -> pa.Table:
    """The rows of the samples table that are labelled images of ``split``, in its order: those that are scored."""
    samples = dataset.samples
    return samples.filter(pc.and_(pc.equal(samples["split"], split), pc.greater_equal(samples["label"], 0)))


def features(backbone: nn.Module, batches: Iterator[Tensor]) -> Tensor:
    """Features float32 (N, D) on the CPU, not normalised, of ``batches`` of images uint8 (B, 3, S, S).

    ``backbone`` must be in eval mode, as load_backbone gives it.

    Raises:
        CheckpointError: a feature is not finite.
    """
    device = next(backbone.parameters()).device
    with torch.inference_mode():
        parts = [
            backbone(evaluation_view(images.to(device)).contiguous(memory_format=torch.channels_last)).float().cpu()
            for images in batches
        ]
    values = torch.cat(parts)
    if not values.isfinite().all():
        raise CheckpointError(
            "the backbone gives features that are not finite: its weights are damaged; train it again"
        )
    return values.clone()  # an ordinary tensor again


def stamped_batches(images: Resident, condition: Condition, seed: int) -> Iterator[Tensor]:
    """``images`` in batches uint8 (B, 3, S, S), each image under the condition's trigger (all of them, as upstream).

    The place is drawn within ``test_location`` of the evaluated frame from a stream of the image's key, so every
    encoder evaluated under one seed sees the same images, and an unseen trigger lies where the attack's would.
    """
    trigger = condition.trigger
    for batch, keys in zip(torch.split(images.images, _BATCH), _blocks(images.keys), strict=True):
        if trigger is None:
            yield batch
            continue
        yield apply_to_tensor(trigger, batch, [_seed_of(seed, key) for key in keys], "test", condition.source)


@lru_cache(maxsize=_CHUNK)
def _seed_of(seed: int, key: str) -> int:
    """Of an image's place; kept from one trigger to the next."""
    return sub_seed(seed, "test_trigger", key)


def _blocks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH))
