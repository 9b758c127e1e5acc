"""Pixels from bytes and back. Bytes are hostile: what decoding will take is bounded before anything is decoded.

| found in an image | what becomes of it |
|---|---|
| JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, whatever the file is called | read; any other format is refused |
| several frames or pages | the first |
| transparency | dropped |
| EXIF orientation | not applied: pixels stay as they are stored |
| 16-bit grey | the high byte; 16-bit colour as Pillow reads it |
| palettes, bilevel, CMYK, YCbCr | converted to RGB, without colour profiles |
| float, 32-bit and Lab TIFFs, and TIFFs of other than lossless common compression | refused |
| more pixels than ``max_pixels`` (WebP: than a 2.5th of it), too many scans, far more bytes than pixels | refused |
"""

import io
import struct
import threading
import warnings
import zlib
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from ssl_backdoor.errors import DataError

UInt8Image = npt.NDArray[np.uint8]

MAX_SCANS = 100
"""Of a JPEG; encoders make about ten. Each scan costs a pass over all pixels, in a few bytes of the file."""
_MAX_SCANNED_PIXELS = 10**9
"""Pixels times scans: the former take 1.5 ns each."""
_WEBP_MEMORY = 2.5
"""Decoding a WebP takes so many times the memory of other formats: it may have so many times fewer pixels."""
_MAX_METADATA_BYTES = 3 * 2**20
_MAX_BYTES_PER_PIXEL = 8  # four channels of 16 bits, uncompressed
_MAX_RESIZED_PIXELS = 2**22
_TIFF_COMPRESSIONS = frozenset(
    {"raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "zstd"}
)
_TIFF_TILE_SIDES = (322, 323)
_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I"})
"""Pillow's modes that become RGB, and those of 16-bit grey, which begin with I;16."""
_ONE_LARGE = threading.Lock()
_LARGE_PIXELS = 2**23
"""Images of more pixels are decoded one at a time, lest several threads multiply their memory."""

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
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tif", TiffImagePlugin.TiffImageFile
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif", AvifImagePlugin.AvifImageFile
    raise DataError(f"not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image ({len(data)} bytes)")


def _check_claims(data: bytes, max_pixels: int) -> None:
    """Refuse by a glance at the first bytes what Pillow would spend memory or time on while it parses the header."""
    width = height = 0
    if data.startswith(b"\x89PNG") and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
    elif data.startswith(b"RIFF") and data[12:16] == b"VP8X" and len(data) >= 30:
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif data.startswith(b"RIFF") and data[12:16] == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif data.startswith(b"RIFF") and data[12:16] == b"VP8 " and len(data) >= 30:
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", data[26:30]))
    if width:
        _check_size(width, height, len(data), int(max_pixels / _WEBP_MEMORY) if data[8:12] == b"WEBP" else max_pixels)


def _check_scans(width: int, height: int, data: bytes) -> None:
    """Refuse a JPEG that takes far longer to decode than its size says."""
    scans = _num_scans(data)
    if scans > MAX_SCANS or scans * width * height > _MAX_SCANNED_PIXELS:
        raise DataError(
            f"has {scans} scans of {width} x {height} px: a JPEG may have {MAX_SCANS}, fewer if it is large"
        )


def _num_scans(data: bytes) -> int:
    """At least as many as a JPEG has: a thumbnail inside it counts."""
    return data.count(b"\xff\xda")


def _check_size(width: int, height: int, num_bytes: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(f"{width} x {height} px is over the limit of {max_pixels} pixels")
    if num_bytes > _MAX_METADATA_BYTES + _MAX_BYTES_PER_PIXEL * width * height:
        raise DataError(f"holds {num_bytes} bytes, far more than its {width} x {height} px can take")


def _check_mode(image: ImageFile) -> None:
    """Refuse what does not become RGB, or not at a bounded cost."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if (compression := image.info.get("compression")) not in _TIFF_COMPRESSIONS:
            raise DataError(f"is a TIFF of compression {compression}: save it as PNG or JPEG")
        width, height = (image.tag_v2.get(tag, 1) for tag in _TIFF_TILE_SIDES)
        _check_size(width, height, 0, max(2**20, 4 * image.width * image.height))
    if not (image.mode in _MODES or image.mode.startswith("I;16")) or (image.mode == "I" and image.format == "TIFF"):
        raise DataError(f"has pixels of mode {image.mode}, which do not become RGB: save it with 8 bits a channel")


def _open(data: bytes, max_pixels: int) -> tuple[str, ImageFile]:
    """Parse the header; ``Image.open`` is avoided because its own bomb check warns."""
    suffix, factory = _opener(data)
    _check_claims(data, max_pixels)
    try:
        with _HEADER_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = factory(io.BytesIO(data), "")
            _check_size(image.width, image.height, len(data), max_pixels)
            if suffix == "jpg":
                _check_scans(image.width, image.height, data)
            _check_mode(image)
    except DataError:
        raise
    except Exception as error:  # Pillow's parsers raise many kinds on hostile bytes
        raise DataError(f"broken {suffix} header: {_words(error)}") from error
    return suffix, image


def _load(data: bytes, max_pixels: int) -> tuple[str, ImageFile]:
    """Decode every pixel."""
    suffix, image = _open(data, max_pixels)
    try:
        with _ONE_LARGE if image.width * image.height > _LARGE_PIXELS else nullcontext():
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
    if not data.startswith(b"\xff\xd8\xff") or _num_scans(data) > MAX_SCANS:
        return None
    try:
        height, width, *colours = simplejpeg.decode_jpeg_header(data)
        if tuple(colours) not in _PLAIN_JPEGS or width * height > min(max_pixels, _LARGE_PIXELS):
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
        method = Image.Resampling.BOX if side_px < short else Image.Resampling.BILINEAR
        if is_too_long(width, height, side_px):
            return _pixels(image.resize((side_px, side_px), method, centre_box(*image.size, short)))
        image = image.resize((width, height), method)
    left, top = ((side - side_px) // 2 for side in image.size)
    return np.ascontiguousarray(_pixels(image)[top : top + side_px, left : left + side_px])


def is_too_long(width: int, height: int, side_px: int) -> bool:
    """Whether an image resized to ``width`` x ``height`` holds far more than its centre square of ``side_px``.

    Then the centre is cut out before the resizing, which gives the same pixels up to rounding.
    """
    return width * height > max(_MAX_RESIZED_PIXELS, 4 * side_px**2)


def centre_box(width: int, height: int, side: float) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the centre square of ``side`` px, for Pillow's ``resize``."""
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def decode_with_alpha(data: bytes, max_pixels: int) -> UInt8Image:
    """``data`` as uint8 (height, width, 4) where it has any transparency, else as ``decode`` gives it.

    Raises:
        DataError: as ``decode``.
    """
    image = _load(data, max_pixels)[1]
    return np.asarray(image.convert("RGBA")) if image.has_transparency_data else decode(data, max_pixels)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: keep the high byte
        grey = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
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
