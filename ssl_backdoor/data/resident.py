"""A whole split in memory as one uint8 tensor: read shard by shard, decoded on a few threads, in place.

Memory beyond the tensor itself is a few chunks of encoded images, whatever the size of the split.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image

from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.data.images import UInt8Image, centre_box, decode, is_too_long
from ssl_backdoor.data.rows import Encoded, encoded_rows, rows_of
from ssl_backdoor.errors import DataError
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.specs import DatasetSpec
from ssl_backdoor.threads import num_decode_threads, parallel_map

Interpolation = Literal["bilinear", "bicubic"]
CHUNK_IMAGES = 64
CHUNK_BYTES = 4 << 20
"""One task decodes so many images, or fewer when their bytes reach this."""
MAX_THREADS = 4


class Resident(NamedTuple):
    """A split in memory; row i of each field is the same sample."""

    images: torch.Tensor
    """(N, 3, H, W) uint8; H = W wherever the spec or the evaluation sets a side."""
    labels: torch.Tensor
    """(N,) int64, -1 where there is none."""
    keys: tuple[str, ...]


def load_resident(
    dataset: Dataset,
    split: str,
    overlay: Overlay | None = None,
    resize_px: int = 0,
    crop_px: int = 0,
    on_progress: OnProgress = silent,
    interpolation: Interpolation = "bilinear",
) -> Resident:
    """Decode ``split`` into memory, in the order of ``rows_of``.

    Args:
        dataset: an ingested dataset; ``spec.frame_px`` (or ``resident_px``) is the side the images are brought to.
            With ``resize_px`` they are resized from the stored frame, whatever ``resident_px`` is.
        split: "train" or "test".
        overlay: its images take the place of those they replace, and those it adds come after all others.
        resize_px: then the shorter side is resized to this, as torchvision's ``Resize`` on PIL images; 0 leaves it.
        crop_px: then a centre crop of this side, as torchvision's ``CenterCrop``; 0 leaves the image whole.
        on_progress: called with the images done.
        interpolation: filter of that resize.

    Raises:
        DataError: no image in the split, an image that does not decode, images of different sizes where none is set, a
            crop larger than the image, or an overlay that is damaged or belongs to another dataset.
    """
    rows = rows_of(dataset, split, overlay)

    def pixels(encoded: Encoded) -> UInt8Image:
        return decode_framed(encoded, dataset.spec, resize_px, crop_px, interpolation)

    encoded = encoded_rows(dataset, overlay, rows)
    first = next(encoded)
    image = pixels(first)
    images = np.empty((rows.num_rows, 3, *image.shape[:2]), dtype=np.uint8)
    images[first.row] = image.transpose(2, 0, 1)
    threads = num_decode_threads(pc.mean(rows["size"]).as_py(), MAX_THREADS)
    _fill(images, encoded, pixels, threads, on_progress)
    labels = rows["label"].to_numpy().astype(np.int64)
    return Resident(torch.from_numpy(images), torch.from_numpy(labels), tuple(rows["key"].to_pylist()))


def to_evaluated_frame(
    image: UInt8Image, resize_px: int, crop_px: int, interpolation: Interpolation = "bilinear"
) -> UInt8Image:
    """Resize, then crop the centre, as torchvision's ``Resize`` and ``CenterCrop`` on PIL images; 0 leaves either out.

    Args:
        image: uint8 (height, width, 3).
        resize_px: the shorter side after Pillow's antialiased resampling.
        crop_px: side of the centre crop.
        interpolation: the filter of that.

    Raises:
        DataError: ``crop_px`` is larger than a side.
    """
    height, width = image.shape[:2]
    short, method = min(height, width), Image.Resampling[interpolation.upper()]
    if resize_px and short != resize_px:
        found = width, height
        height, width = int(height * resize_px / short), int(width * resize_px / short)
        if is_too_long(width, height, resize_px):
            if not 0 < crop_px <= resize_px:
                raise DataError(
                    f"an image of {found[0]} x {found[1]} px would be resized to {width} x {height} px: leave it out, "
                    "or set evaluation.crop_px to at most evaluation.resize_px"
                )
            box = centre_box(*found, crop_px * short / resize_px)
            return np.asarray(Image.fromarray(image).resize((crop_px, crop_px), method, box))
        image = np.asarray(Image.fromarray(image).resize((width, height), method))
    if not crop_px:
        return image
    if crop_px > min(height, width):
        raise DataError(
            f"a centre crop of {crop_px} px needs sides at least as long, but the image has {width} x {height} px: "
            "lower evaluation.crop_px or raise evaluation.resize_px"
        )
    top, left = round((height - crop_px) / 2), round((width - crop_px) / 2)
    return image[top : top + crop_px, left : left + crop_px]


def decode_framed(
    encoded: Encoded,
    spec: DatasetSpec,
    resize_px: int = 0,
    crop_px: int = 0,
    interpolation: Interpolation = "bilinear",
) -> UInt8Image:
    """Check, decode and frame one image: uint8 (height, width, 3).

    It is brought to ``frame_px``, or where that is 0 and no ``resize_px`` is asked for to ``resident_px``, by the
    spec's filter; then ``to_evaluated_frame``.

    Raises:
        DataError: it is not the image that was recorded, or it does not decode.
    """
    if encoded.sha256 and hashlib.sha256(encoded.data).hexdigest() != encoded.sha256:
        raise DataError(f"the overlay's image {encoded.key!r} is not the one that was recorded: poison the data again")
    try:
        resident_px = 0 if spec.frame_px or resize_px else spec.resident_px
        by_area = resident_px if spec.resident_filter == "area" else 0
        image = decode(encoded.data, spec.max_image_pixels, spec.frame_px or by_area)
        if resident_px and not by_area:
            image = to_evaluated_frame(image, resident_px, resident_px)
        return to_evaluated_frame(image, resize_px, crop_px, interpolation)
    except DataError as error:
        raise DataError(f"image {encoded.key!r}: {error}") from error


def _fill(
    images: np.ndarray,
    encoded: Iterator[Encoded],
    pixels: Callable[[Encoded], UInt8Image],
    threads: int,
    on_progress: OnProgress,
) -> None:
    """Write every image after the first to its row of ``images`` (N, 3, H, W), a bounded number of chunks at once."""
    is_over = threading.Event()

    def write(chunk: list[Encoded]) -> int:
        for one in chunk:
            if is_over.is_set():
                break
            image = pixels(one)
            if image.shape[:2] != images.shape[2:]:
                raise DataError(_sizes_differ(one.key, image.shape, images.shape))
            images[one.row] = image.transpose(2, 0, 1)
        return len(chunk)

    done = 1
    on_progress(Progress(done, len(images), "images"))
    for count in parallel_map(write, _chunks(encoded), threads, is_over.set):
        done += count
        on_progress(Progress(done, len(images), "images"))


def _chunks(encoded: Iterator[Encoded]) -> Iterator[list[Encoded]]:
    chunk, num_bytes = list[Encoded](), 0
    for one in encoded:
        chunk.append(one)
        num_bytes += len(one.data)
        if len(chunk) == CHUNK_IMAGES or num_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _sizes_differ(key: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return (
        f"images held in memory need one size, but {key!r} has {found[1]} x {found[0]} px and the first has "
        f"{expected[3]} x {expected[2]} px: set dataset.resident_px or dataset.frame_px to bring all to one side"
    )
