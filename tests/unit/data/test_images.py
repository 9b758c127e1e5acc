import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from picture_files import picture
from PIL import Image

from ssl_backdoor.data import images
from ssl_backdoor.data.images import decode, encode_jpeg75, encode_png, inspect
from ssl_backdoor.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("shape", [(9, 14), (1, 1), (3, 1), (1, 300), (200, 100)])
def test_png_keeps_every_pixel(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    data = encode_png(image)
    assert np.array_equal(decode(data, 100_000), image)
    opened = Image.open(io.BytesIO(data))
    opened.verify()  # Pillow checks the chunks' sums
    assert (opened.format, opened.mode, opened.size) == ("PNG", "RGB", shape[::-1])


def test_jpeg75_has_pillows_tables_and_halved_chroma() -> None:
    expected = saved(Image.fromarray(PIXELS), "JPEG", quality=75, subsampling="4:2:0")
    assert encode_jpeg75(PIXELS) == expected


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("PNG", "png"), ("BMP", "bmp"), ("GIF", "gif"), ("WEBP", "webp"), ("TIFF", "tif"), ("AVIF", "avif")],
)
def test_every_format_is_told_by_its_bytes(kind: str, suffix: str) -> None:
    assert inspect(saved(Image.fromarray(PIXELS), kind), 10_000) == (suffix, 14, 9)


def test_modes_become_rgb() -> None:
    grey = np.arange(0, 250, 2, dtype=np.uint8).reshape(5, 25)
    as_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    assert np.array_equal(decode(saved(Image.fromarray(grey), "PNG"), 10_000), as_rgb)
    sixteen = Image.fromarray(grey.astype(np.uint16) * 256 + 17)
    assert np.array_equal(decode(saved(sixteen, "PNG"), 10_000), as_rgb)
    with_alpha = np.dstack([as_rgb, np.full_like(grey, 3)])
    assert np.array_equal(decode(saved(Image.fromarray(with_alpha), "PNG"), 10_000), as_rgb)
    cmyk = decode(saved(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"), 10_000)
    assert cmyk.shape == (9, 14, 3)


def test_palette_with_transparent_entries_does_not_warn() -> None:
    palette = Image.fromarray(PIXELS).quantize(8)
    data = saved(palette, "PNG", transparency=bytes([0, 128, 255, 255, 255, 255, 255, 255]))
    assert np.array_equal(decode(data, 10_000), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("side", [7_000, 30_000])
def test_a_bomb_is_refused_by_its_header_without_a_warning(side: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(DataError, match=f"{side} x {side} px is over the limit of 1000000 pixels"):
            decode(png_header(side, side), 1_000_000)
        with pytest.raises(DataError, match="over the limit"):
            inspect(png_header(side, side), 1_000_000)
    assert not caught


def test_pillows_own_limit_does_not_warn_when_ours_is_higher() -> None:
    data = saved(Image.new("L", (10_000, 9_001)), "PNG")  # over Pillow's 89 million
    assert inspect(data, 100_000_000) == ("png", 10_000, 9_001)


def test_corrupt_exif_does_not_warn() -> None:
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\x00" + bytes(range(7))
    data = picture(0, kind="JPEG")
    marker = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    # without a JFIF resolution, Pillow looks for one in the EXIF block
    bare = data[:2] + marker + data[2 + 2 + struct.unpack(">H", data[4:6])[0] :]
    assert inspect(bare, 10_000) == ("jpg", 12, 12)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"\xff\xd8\xff", b"GIF89a", b"hello, world", png_header(4, 4), picture(1)[:-40], picture(1)[:30]],
)
def test_what_is_no_image_is_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError):
        inspect(data, 10_000)
    with pytest.raises(DataError):
        decode(data, 10_000)


def framed(image: np.ndarray, side_px: int) -> np.ndarray:
    return decode(encode_png(image), 1_000_000, side_px)


def test_a_frame_averages_areas_and_is_cut_from_the_centre() -> None:
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 2:4] = 40  # after shrinking by two: column 1
    image[:2, 4:6] = 80  # column 2, row 0
    assert framed(image, 2).tolist() == [[[40] * 3, [80] * 3], [[40] * 3, [0] * 3]]


def test_a_frame_of_the_right_size_is_left_alone() -> None:
    assert np.array_equal(framed(PIXELS, 0), PIXELS)
    assert np.array_equal(framed(PIXELS[:, :9], 9), PIXELS[:, :9])
    assert np.array_equal(framed(PIXELS, 9), PIXELS[:, 2:11])


@pytest.mark.parametrize("shape", [(5, 31), (31, 5), (3, 3), (100, 7), (224, 225)])
@pytest.mark.parametrize("side", [1, 5, 16])
def test_a_frame_always_has_the_side(shape: tuple[int, int], side: int) -> None:
    assert framed(np.full((*shape, 3), 77, np.uint8), side).tolist() == np.full((side, side, 3), 77).tolist()


@pytest.mark.parametrize("side", [16, 64, 224])
def test_a_long_image_is_cut_to_its_centre_before_it_is_resized(side: int) -> None:
    column = (np.arange(60_001) % 251).astype(np.uint8)
    image = np.repeat(column[:, None, None], 3, axis=2)
    centre = framed(image[29_995:30_006], side)  # short enough to be resized whole
    assert np.abs(framed(image, side).astype(int) - centre).max() <= 1
    assert np.array_equal(framed(image.transpose(1, 0, 2), side), framed(image, side).transpose(1, 0, 2))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_a_frame_of_any_mode_is_that_of_its_rgb(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    data = saved(image, "JPEG" if mode == "CMYK" else "PNG")
    assert np.array_equal(decode(data, 10_000, 5), framed(decode(data, 10_000), 5))


SMOOTH = np.asarray(Image.fromarray(PIXELS).resize((41, 29), Image.Resampling.BICUBIC))
JPEGS = {
    "444": saved(Image.fromarray(SMOOTH), "JPEG", subsampling=0),
    "422": saved(Image.fromarray(SMOOTH), "JPEG", subsampling=1),
    "420": saved(Image.fromarray(SMOOTH), "JPEG", subsampling=2),
    "progressive": saved(Image.fromarray(SMOOTH), "JPEG", progressive=True),
    "restarts": saved(Image.fromarray(SMOOTH), "JPEG", restart_marker_blocks=2),
    "grey": saved(Image.fromarray(SMOOTH).convert("L"), "JPEG"),
    "blocks": saved(Image.fromarray(np.tile(SMOOTH, (3, 3, 1))), "JPEG", quality=95, comment="hello"),
}


def pillows(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("kind", JPEGS)
def test_a_plain_jpeg_has_pillows_pixels_without_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pillows(JPEGS[kind])
    monkeypatch.setattr(images, "_open", None)
    found = decode(JPEGS[kind], 100_000)
    assert np.array_equal(found, expected)
    assert not found.flags.writeable
    assert inspect(JPEGS[kind], 100_000) == ("jpg", *expected.shape[1::-1])


def test_a_jpeg_of_other_colours_is_left_to_pillow() -> None:
    cmyk = saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG")
    assert np.array_equal(decode(cmyk, 10_000), pillows(cmyk))


def test_a_jpeg_bomb_is_refused_by_its_header() -> None:
    data = bytearray(JPEGS["444"])
    size = data.index(b"\xff\xc0") + 5
    data[size : size + 4] = struct.pack(">HH", 60_000, 50_000)
    with pytest.raises(DataError, match="50000 x 60000 px is over the limit of 1000000 pixels"):
        decode(bytes(data), 1_000_000)


def test_a_damaged_jpeg_is_refused_or_read_as_pillow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, read_plainly = np.random.default_rng(5), 0
    for data in (bytearray(data) for _ in range(150) for data in JPEGS.values()):
        for at in rng.integers(3, len(data) if rng.random() < 0.5 else 620, rng.integers(1, 4)):
            data[at] = rng.integers(256)
        damaged = bytes(data[: rng.integers(3, len(data)) if rng.random() < 0.1 else None])
        plain = images._plain_jpeg(damaged, 100_000)
        if plain is not None:
            read_plainly += 1
            with monkeypatch.context() as patched:
                patched.setattr(images, "_plain_jpeg", lambda data, max_pixels: None)
                assert np.array_equal(decode(damaged, 100_000), plain)
    assert read_plainly > 100
