"""Pixels from bytes and back. Bytes are hostile: the size is read from the header before anything is decoded."""

import io
import struct
import threading
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from ssl_backdoor.errors import DataError

UInt8Image = npt.NDArray[np.uint8]

# Pillow warns while it parses odd EXIF blocks. Python 3.11's warning filters are shared by all threads, so the header
# (which holds the interpreter lock anyway) is parsed under a lock; decoding runs in parallel.
_HEADER_LOCK = threading.Lock()

_PLAIN_JPEGS = {("YCbCr", "444"), ("YCbCr", "422"), ("YCbCr", "420"), ("Gray", "Gray")}
"""The colours of JPEGs whose pixels are compared with Pillow's by a test; others are left to Pillow."""


class Header(NamedTuple):
    """What an image says of itself; ``suffix`` is that of its true format."""

    suffix: str
    width: int
    height: int


def _opener(data: bytes) -> tuple[str, type[ImageFile]]:
    """The suffix and the Pillow class for ``data``, by its first bytes."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg", JpegImagePlugin.JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png", PngImagePlugin.PngImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp", WebPImagePlugin.WebPImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif", GifImagePlugin.GifImageFile
    if data.startswith(b"BM"):
        return "bmp", BmpImagePlugin.BmpImageFile
    raise DataError(f"not a JPEG, PNG, WebP, GIF or BMP image ({len(data)} bytes)")


def _open(data: bytes, max_pixels: int) -> tuple[str, ImageFile]:
    """Parse the header; ``Image.open`` is avoided because its own bomb check warns."""
    suffix, factory = _opener(data)
    try:
        with _HEADER_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = factory(io.BytesIO(data), "")
    except Exception as error:  # Pillow's parsers raise many kinds on hostile bytes
        raise DataError(f"broken {suffix} header: {_words(error)}") from error
    if image.width * image.height > max_pixels:
        raise DataError(f"{image.width} x {image.height} px is over the limit of {max_pixels} pixels")
    return suffix, image


def _load(data: bytes, max_pixels: int) -> tuple[str, ImageFile]:
    """Decode every pixel."""
    suffix, image = _open(data, max_pixels)
    try:
        image.load()
    except Exception as error:  # as in _open
        raise DataError(f"cannot be decoded: {_words(error)}") from error
    return suffix, image


def _words(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _plain_jpeg(data: bytes, max_pixels: int) -> UInt8Image | None:
    """A JPEG's pixels from libjpeg-turbo itself, or None where it has the least doubt: Pillow decides then.

    The pixels are those of Pillow, which calls the same library; most of its time on a small image is its own Python.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, *colours = simplejpeg.decode_jpeg_header(data)
        if tuple(colours) not in _PLAIN_JPEGS or width * height > max_pixels:
            return None
        pixels: UInt8Image = simplejpeg.decode_jpeg(data)  # strict: a warning of the library's is an error
    except ValueError:
        return None
    pixels.flags.writeable = False
    return pixels


def inspect(data: bytes, max_pixels: int) -> Header:
    """Decode ``data`` fully and return its format and size in px.

    Raises:
        DataError: not an image, over ``max_pixels``, or it does not decode.
    """
    if (pixels := _plain_jpeg(data, max_pixels)) is not None:
        return Header("jpg", pixels.shape[1], pixels.shape[0])
    suffix, image = _load(data, max_pixels)
    return Header(suffix, image.width, image.height)


def decode(data: bytes, max_pixels: int, side_px: int = 0) -> UInt8Image:
    """``data`` as uint8 (height, width, 3) RGB, read-only; transparency is dropped, EXIF orientation is not applied.

    ``side_px`` brings it to (side_px, side_px, 3): the shorter side is resized, then the centre cropped. Shrinking
    averages areas (Pillow's box filter); enlarging is bilinear. 0 leaves the size as it is.

    Raises:
        DataError: not an image, over ``max_pixels`` (checked in the header, before decoding), or it does not decode.
    """
    pixels = _plain_jpeg(data, max_pixels)
    if pixels is not None and (side_px == 0 or pixels.shape[:2] == (side_px, side_px)):
        return pixels
    image = _as_rgb(_load(data, max_pixels)[1]) if pixels is None else Image.fromarray(pixels)
    if side_px == 0 or image.size == (side_px, side_px):
        return _pixels(image)
    short = min(image.size)
    if short != side_px:
        width, height = (max(side_px, round(side * side_px / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BOX if side_px < short else Image.Resampling.BILINEAR)
    left, top = ((side - side_px) // 2 for side in image.size)
    return np.ascontiguousarray(_pixels(image)[top : top + side_px, left : left + side_px])


def decode_with_alpha(data: bytes, max_pixels: int) -> UInt8Image:
    """``data`` as uint8 (height, width, 4) where it has any transparency, else as ``decode`` gives it.

    Raises:
        DataError: as ``decode``.
    """
    image = _load(data, max_pixels)[1]
    return np.asarray(image.convert("RGBA")) if image.has_transparency_data else decode(data, max_pixels)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: keep the high byte
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _pixels(image: Image.Image) -> UInt8Image:
    """Of an RGB image; half the time of NumPy's own way to them."""
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)


def encode_png(image: UInt8Image) -> bytes:
    """Lossless PNG of uint8 (height, width, 3): every row as differences to the left, fastest compression.

    Pillow's encoder takes twice as long on small images: it tries all filters on every row.
    """
    height, width, _ = image.shape
    flat = image.reshape(height, 3 * width)
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 1  # the filter "Sub"
    rows[:, 1:] = flat
    rows[:, 4:] -= flat[:, :-3]
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def encode_jpeg75(image: UInt8Image) -> bytes:
    """JPEG of uint8 (height, width, 3) at quality 75 with halved chroma, Pillow's default, as Saha et al.'s code."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75)
    return file.getvalue()
