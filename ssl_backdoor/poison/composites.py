"""Poisons made of two images side by side: what Noisy Alignment, CorruptEncoder and PoisonedEncoder have in common."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from ssl_backdoor.data.dataset import Samples
from ssl_backdoor.errors import DataError
from ssl_backdoor.poison.plan import Where, chosen_rows, key_seeds, training
from ssl_backdoor.poison.triggers.patch import UInt8Images
from ssl_backdoor.specs.attack import Composed
from ssl_backdoor.specs.data import DatasetSpec
from ssl_backdoor.specs.trigger import Box

Side = Literal["left", "right", "top", "bottom"]
SIDES: tuple[Side, ...] = ("left", "right", "top", "bottom")


def pool(samples: Samples, where: Where | None, count: int, seed: int, role: str, what: str) -> pa.Table:
    """Up to ``count`` training images (key, label, caption), those of smallest key hash, in the order of the hashes.

    Raises:
        DataError: there is none; ``what`` names them.
    """
    columns = ["key", "label", "caption"]
    num_found = sum(block.num_rows for block in training(samples, ["label"], where))
    if not num_found:
        raise DataError(
            f"the dataset has no {what}, so that no poison can be composed: choose another class or dataset"
        )
    chosen = chosen_rows(training(samples, columns, where), min(count, num_found), seed, "poison", role)
    return chosen.take(pa.array(np.argsort(key_seeds(chosen["key"], seed, "poison", role))))


def beside(first: UInt8Images, second: UInt8Images, side: Side) -> tuple[UInt8Images, Box]:
    """``first`` at ``side`` of ``second`` on one canvas, and where it lies there.

    As Noisy Alignment (https://arxiv.org/abs/2508.14015): if one has more than twice the other's area, the smaller one
    is enlarged to about the same; then both are resized to the smaller of the sides that meet, their aspect not kept.
    """
    areas = [image.shape[0] * image.shape[1] for image in (first, second)]
    if max(areas) > 2 * min(areas):
        scale = (max(areas) / min(areas)) ** 0.5
        first, second = (
            resize(image, round(scale * image.shape[1]), round(scale * image.shape[0]), Image.Resampling.LANCZOS)
            if area == min(areas)
            else image
            for image, area in zip((first, second), areas, strict=True)
        )
    axis = 1 if side in ("left", "right") else 0
    meet = min(first.shape[1 - axis], second.shape[1 - axis])
    first, second = (
        resize(image, *((image.shape[1], meet) if axis else (meet, image.shape[0]))) for image in (first, second)
    )
    is_ahead = side in ("left", "top")
    canvas = np.concatenate((first, second) if is_ahead else (second, first), axis=axis)
    start = 0 if is_ahead else second.shape[axis]
    x, y = (start, 0) if axis else (0, start)
    return canvas, Box(x, y, first.shape[1], first.shape[0])


def resize(
    image: UInt8Images, width: int, height: int, method: Image.Resampling = Image.Resampling.BILINEAR
) -> UInt8Images:
    """``image`` at ``width`` x ``height`` px, by one of Pillow's antialiased filters."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((max(1, width), max(1, height)), method))


def store(canvas: UInt8Images, box: Box | None, dataset: DatasetSpec, like: UInt8Images) -> Composed:
    """``canvas`` as it can be held among the dataset's images, which all have one shape.

    NOTE: training holds images of one shape. A canvas that is cut to it would lose half of both images, so it is
    squeezed, and its proportions are recorded: random crops are taken in them, as of the canvas itself.
    """
    held_px = dataset.frame_px or dataset.resident_px
    height, width = (held_px, held_px) if held_px else like.shape[:2]
    down, across = height / canvas.shape[0], width / canvas.shape[1]
    if box is not None:
        box = box.on(canvas.shape, Box(0, 0, width, height))
    return Composed(resize(canvas, width, height), box, down / across)


def pairs_table(rows: Sequence[Mapping[str, object]]) -> pa.Table:
    """Rows of an "add" plan without keys: source_key, label, sub_seed, caption and PARTNERS."""
    return pa.table({name: [row[name] for row in rows] for name in rows[0]})
