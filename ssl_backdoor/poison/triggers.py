"""Triggers: pure functions on uint8 images of shape (height, width, 3); ``apply`` is what others call.

The frame is the caller's: the stored image when poisoning, the image after resize and crop when testing. Placement and
pasting follow Saha et al. 2022 (https://arxiv.org/abs/2105.10123), poison-generation/generate_poison.py of
UMBCvision/SSL-Backdoor at 273ca47.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, assert_never

import numpy as np
import numpy.typing as npt
from PIL import Image

from ssl_backdoor.data.images import UInt8Image, decode
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.seeds import generator, stream
from ssl_backdoor.specs import GridTriggerSpec, ImageTriggerSpec, TriggerSpec

_MAX_SOURCE_PIXELS = 50_000_000
_MAX_SOURCE_BYTES = 64 * 2**20
UInt8Images = npt.NDArray[np.uint8]
"""(B, height, width, 3)"""


class Box(NamedTuple):
    """Where a trigger lies, in px of its frame; ``x`` and ``y`` are the left and upper edges."""

    x: int
    y: int
    width: int
    height: int


class Stamped(NamedTuple):
    """A stamped image and where the trigger went."""

    image: UInt8Image
    box: Box


def size_in(trigger: TriggerSpec, height: int, width: int) -> int:
    """Side in px of ``trigger`` on an image of ``height`` x ``width`` px, at least 1.

    Raises:
        SpecError: the trigger is larger than the image.
    """
    size = trigger.size_px or max(1, round(trigger.size_frac * min(height, width)))
    if size > min(height, width):
        raise SpecError(
            f"The trigger of {size}x{size} px is larger than the image of {width}x{height} px "
            "(width x height): lower size_px, or give size_frac."
        )
    return size


def read_source(trigger: TriggerSpec, kept: Path | None = None) -> bytes | None:
    """Bytes of an image trigger, from ``kept`` (a poison artifact's copy) or else its own file; None for a drawn one.

    Raises:
        DataError: the file cannot be read.
    """
    if not trigger.file:
        return None
    path = kept or Path(trigger.file)
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would never end
            raise DataError(f"The trigger image {path} is not a file: give a readable image.")
        with path.open("rb") as file:
            data = file.read(_MAX_SOURCE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"The trigger image {path} cannot be read ({reason}): give a readable image.") from error
    if len(data) > _MAX_SOURCE_BYTES:
        raise DataError(f"The trigger image {path} has more than {_MAX_SOURCE_BYTES} bytes: give a smaller one.")
    return data


def digest_of_file(trigger: TriggerSpec) -> str:
    """sha256 of the trigger's file; DataError where it cannot be read."""
    return hashlib.sha256(read_source(trigger) or b"").hexdigest()


@lru_cache(maxsize=32)
def render(trigger: TriggerSpec, size_px: int, source: bytes | None = None) -> UInt8Image:
    """The trigger's pixels, uint8 (size_px, size_px, 3), read-only; ``source`` is the file of an image trigger.

    NOTE: an image trigger is resized by PIL's BICUBIC, named here because Pillow's default changed from NEAREST in 7.0
    and the paper's figures depend on it. It becomes a square, whatever its aspect (the paper's are square).

    Raises:
        DataError: ``source`` is not a readable image, or not the one whose digest the spec holds.
    """
    match trigger:
        case GridTriggerSpec():
            pixels = _grid(trigger, size_px)
        case ImageTriggerSpec():
            pixels = _picture(trigger, size_px, source)
        case _:
            assert_never(trigger)
    pixels.flags.writeable = False
    return pixels


def _grid(trigger: GridTriggerSpec, size_px: int) -> UInt8Image:
    cells = stream(trigger.seed, "trigger").integers(0, 256, (trigger.cells, trigger.cells, 3), dtype=np.uint8)
    if trigger.style == "smooth":
        return np.array(Image.fromarray(cells).resize((size_px, size_px), Image.Resampling.BILINEAR))
    if trigger.style == "binarised":
        cells = np.where(cells < 128, 0, 255).astype(np.uint8)
    cell_of = np.arange(size_px) * trigger.cells // size_px
    return cells[cell_of][:, cell_of]


def _picture(trigger: ImageTriggerSpec, size_px: int, source: bytes | None) -> UInt8Image:
    if source is None:
        raise DataError(f"The image trigger {trigger.file} was asked for without its file's content: read it first.")
    found = hashlib.sha256(source).hexdigest()
    if trigger.sha256 and found != trigger.sha256:
        raise DataError(
            f"The trigger image {trigger.file} has changed: expected sha256 {trigger.sha256}, found {found}; "
            "restore the file or start a new experiment."
        )
    try:
        pixels = decode(source, _MAX_SOURCE_PIXELS)
    except DataError as error:
        raise DataError(f"The trigger image {trigger.file} is unusable ({error}): give a PNG or JPEG.") from error
    return np.array(Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.BICUBIC))


def place(height: int, width: int, size_px: int, location: tuple[float, float], rng: np.random.Generator) -> Box:
    """A box whose corner is a uniform integer in [int(low * side), int(high * side - size_px)], per axis, x first.

    Where the upper bound falls below the lower one it is set to the lower one, as upstream.

    NOTE: the corner is then held inside [0, side - size_px]; upstream lets the patch stick out of a small image.
    """
    low, high = location

    def corner(side: int) -> int:
        lower = int(low * side)
        upper = max(lower, int(high * side - size_px))
        return min(max(int(rng.integers(lower, upper, endpoint=True)), 0), side - size_px)

    return Box(corner(width), corner(height), size_px, size_px)


@lru_cache(maxsize=2048)
def _place_of(height: int, width: int, size_px: int, location: tuple[float, float], seed: int) -> Box:
    """``place`` of one image: the same under each trigger of a size, so kept from one to the next."""
    return place(height, width, size_px, location, generator(seed))


def paste(image: UInt8Image, patch: UInt8Image, box: Box, opacity: float) -> None:
    """Put ``patch`` over ``box`` of ``image``, which changes; opacity 1 replaces the pixels."""
    under = image[box.y : box.y + box.height, box.x : box.x + box.width]
    under[:] = patch if opacity == 1.0 else np.rint((1.0 - opacity) * under + opacity * patch).astype(np.uint8)


def apply(
    trigger: TriggerSpec,
    image: UInt8Image,
    seed: int,
    location: tuple[float, float],
    source: bytes | None = None,
) -> Stamped:
    """``image`` (uint8, height x width x 3) with the trigger on it. Poisoning and testing both call this.

    Pure in its arguments: ``image`` is left as it is.

    Args:
        trigger: what is put on it.
        image: the whole frame: as stored when poisoning, after resize and crop when testing.
        seed: of this image's own stream, from which its place is drawn.
        location: within which the corner lies, as fractions of the side (``train_location``, ``test_location``).
        source: content of an image trigger's file.

    Raises:
        SpecError: the trigger is larger than the image.
        DataError: the image trigger cannot be used.
    """
    (stamped,), (box,) = apply_all(trigger, image[None], [seed], location, source)
    return Stamped(stamped, box)


def apply_all(
    trigger: TriggerSpec,
    images: UInt8Images,
    seeds: Sequence[int],
    location: tuple[float, float],
    source: bytes | None = None,
) -> tuple[UInt8Images, list[Box]]:
    """``apply`` of images uint8 (B, height, width, 3), each with a seed of its own: the stamped ones, and where.

    Raises:
        SpecError, DataError: as ``apply`` does.
    """
    height, width = images.shape[1:3]
    patch = render(trigger, size_in(trigger, height, width), source)
    stamped, boxes = images.copy(), [_place_of(height, width, len(patch), location, seed) for seed in seeds]
    for image, box in zip(stamped, boxes, strict=True):
        paste(image, patch, box, trigger.opacity)
    return stamped, boxes
