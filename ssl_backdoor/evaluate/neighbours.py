"""Which clean images a backbone finds most like a triggered one: a sheet for the eye."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.data.images import UInt8Image
from ssl_backdoor.data.resident import Resident, load_resident
from ssl_backdoor.evaluate.features import Condition, Features, labelled, stamped_batches
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import EvaluationSpec

QUERIES = 6
NEIGHBOURS = 6
_SIDE_PX = 64


def write_neighbours(
    dataset: Dataset,
    train: Features | None,
    test: Features,
    triggered: Condition,
    target_label: int | None,
    spec: EvaluationSpec,
    seed: int,
    file: Path,
) -> None:
    """Write 6 triggered test images, not of the target class, and the 6 clean images nearest to each by cosine.

    The neighbours are training images, or where ``train`` is None test images, the query's own clean image left out.
    Queries follow from the seed alone. Thumbnails of at most 64 px: query uint8 (Q, h, w, 3), query_label int32 (Q,),
    neighbours uint8 (Q, K, h, w, 3), nearest first, label int32 (Q, K), cosine float32 (Q, K); Q and K are 6, or as
    many images as there are. Nothing is written where one of them is 0.

    Raises:
        DataError: an image cannot be read, or the sizes differ.
    """
    others = np.flatnonzero(test.labels.numpy() != (-1 if target_label is None else target_label))
    queries = np.sort(stream(seed, "neighbours").choice(others, min(QUERIES, len(others)), replace=False))
    base, split = (test, "test") if train is None else (train, "train")
    cosine = _cosine(test.values["triggered"][queries], base.values["clean"])
    if train is None:
        cosine[torch.arange(len(queries)), torch.from_numpy(queries)] = -torch.inf
    count = min(NEIGHBOURS, len(base.labels) - (train is None))
    if not len(queries) or count < 1:
        return
    nearest = cosine.topk(count, dim=1)
    shown, place = np.unique(nearest.indices.numpy(), return_inverse=True)
    stamped = torch.cat(list(stamped_batches(_images(dataset, "test", queries, spec), triggered, seed)))
    np.savez(
        file,
        query=_thumbnails(stamped),
        query_label=test.labels.numpy()[queries].astype(np.int32),
        neighbours=_thumbnails(_images(dataset, split, shown, spec).images)[place.reshape(nearest.indices.shape)],
        label=base.labels[nearest.indices].numpy().astype(np.int32),
        cosine=nearest.values.numpy(),
    )


def _cosine(queries: Tensor, candidates: Tensor) -> Tensor:
    """(Q, D) and (N, D) to (Q, N) float32."""
    return F.normalize(queries, dim=1) @ F.normalize(candidates, dim=1).T


def _images(dataset: Dataset, split: str, rows: NDArray[np.int64], spec: EvaluationSpec) -> Resident:
    """The labelled images of ``split`` at ``rows`` in the evaluated frame."""
    chosen = replace(dataset, samples=labelled(dataset, split).take(pa.array(rows)))
    return load_resident(
        chosen, split, resize_px=spec.resize_px, crop_px=spec.crop_px, interpolation=spec.interpolation
    )


def _thumbnails(images: Tensor) -> UInt8Image:
    """Images uint8 (M, 3, H, W) to (M, h, w, 3): areas averaged until the longer side is at most 64 px."""
    pixels: UInt8Image = images.permute(0, 2, 3, 1).numpy()
    height, width = pixels.shape[1:3]
    scale = _SIDE_PX / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in pixels])
