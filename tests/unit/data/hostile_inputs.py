"""A table of hostile inputs, each run alone in a fork that counts its time and memory.

    python tests/unit/data/hostile_inputs.py FOLDER

prints one JSON line a case: its name, the outcome ("read", "refused: ..." or "failed: ..."), seconds of processor time
and MB of memory beyond those at its start. Inputs are made before the counting begins.
"""

import gc
import gzip
import io
import json
import lzma
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd  # noqa: F401  of pyarrow: not again in each fork
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from ssl_backdoor.data.captions import clean_captions, decode_text
from ssl_backdoor.data.cifar import _unpickle
from ssl_backdoor.data.images import decode, inspect
from ssl_backdoor.data.ingest import ingest
from ssl_backdoor.data.resident import to_evaluated_frame
from ssl_backdoor.data.sources import expand_braces
from ssl_backdoor.errors import UserError
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec, TrainSpec

Case = Callable[[Path], Callable[[], object]]
HANG_S = 120
MEMORY_BYTES = 2**31
MAX_PIXELS = 50_000_000
READ = "^read"
REFUSED = "^refused: "


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))

# ------------------------------------------------------------------------------------------------ images


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (4, 4), bits: int = 8, colour: int = 2) -> bytes:
    """A PNG of ``size``, grey unless it has other ``chunks`` than its pixels."""
    rows = zlib.compress(bytes(size[1] * (1 + size[0] * 3))) if size[0] * size[1] < 100 else b""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def jpeg_of_scans(count: int, side: int = 64) -> bytes:
    data = saved(Image.new("RGB", (side, side), (9, 99, 199)), "JPEG", progressive=True)
    at, end = data.rindex(b"\xff\xda"), len(data) - 2
    return data[:end] + data[at:end] * count + data[end:]


def patched(data: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    at = data.index(mark) + offset
    return data[:at] + new + data[at + len(new) :]


def webp(kind: bytes, body: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def tiff(**tags: tuple[int, int, int]) -> bytes:
    """A little TIFF of one grey strip; each value is (tag, type, value)."""
    fields = {256: (4, 4), 257: (4, 4), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 400), 277: (3, 1), 278: (4, 4)}
    fields |= {279: (4, 16)} | {tag: (kind, value) for tag, kind, value in tags.values()}
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(fields.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4)
    return head.ljust(400, b"\0") + bytes(64)


def tiff_that_claims(entries: int, following: int) -> bytes:
    entry = struct.pack("<HHII", 270, 2, 2**31 - 1, 8)
    return b"II*\0" + struct.pack("<IH", 8, entries) + entry * min(entries, 50_000) + struct.pack("<I", following)


def read_image(data: bytes) -> None:
    inspect(data, MAX_PIXELS)
    for side in (0, 64):
        to_evaluated_frame(decode(data, MAX_PIXELS, side), 32, 32)


def image(make: Callable[[], bytes]) -> Case:
    return lambda _: partial(read_image, make())


def damaged(kind: str, seed: int) -> Case:
    """A hundred copies of an image with some bytes changed, each refused or read."""

    def read_all() -> None:
        rng, whole = random.Random(seed), saved(NOISE, kind)
        for _ in range(100):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(len(data) if seed % 2 else min(120, len(data)))] = rng.randrange(256)
            try:
                read_image(bytes(data[: rng.randrange(len(data)) if rng.random() < 0.2 else None]))
            except UserError:
                continue

    return lambda _: read_all


FLAT = (5_000, 5_000)
IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    **{f"{w} x {h} PNG header": (partial(png, size=(w, h)), f"{w} x {h} px is over the limit") for w, h in (
        (30_000, 30_000), (7_100, 7_100), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1))},
    **{f"{w} x {h} PNG": (lambda w=w, h=h: saved(Image.new("RGB", (w, h)), "PNG"), READ) for w, h in (
        (1, 65_500), (65_500, 1), (2, 60_000), (1, 10**6))},
    "1 x 65500 JPEG": (lambda: saved(Image.new("RGB", (1, 65_500)), "JPEG"), READ),
    "PNG of no size": (lambda: png(size=(0, 0)), REFUSED),
    "PNG with a text bomb": (lambda: png((b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))), REFUSED),
    "PNG with a profile bomb": (lambda: png((b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26)))), "read|refused"),
    "PNG with many texts": (lambda: png(*[(b"tEXt", b"a\0" + bytes(10**6))] * 8), "far more than its 4 x 4 px"),
    "PNG with 100,000 chunks": (lambda: png(*[(b"teXt", b"")] * 100_000), "read|refused"),
    "PNG with 4 MB of chunks": (lambda: png(*[(b"teXt", bytes(40))] * 10**5), "far more than its 4 x 4 px"),
    "PNG with an IDAT bomb": (lambda: png((b"IDAT", zlib.compress(bytes(2**26)))), "read|refused"),
    "PNG of a million frames": (lambda: png((b"acTL", struct.pack(">II", 10**6, 0))), "read|refused"),
    "PNG of 3 bits": (lambda: png(bits=3), REFUSED),
    "PNG palette without colours": (lambda: png(colour=3), "read|refused"),
    "PNG whose chunk is too long": (lambda: patched(png(), b"IDAT", -4, b"\x7f\xff\xff\xff"), "read|refused"),
    "PNG without pixels": (lambda: png(size=(40, 40)), REFUSED),
    "flat PNG of 25 Mpx": (lambda: saved(Image.new("L", FLAT), "PNG"), READ),
    "flat GIF of 25 Mpx": (lambda: saved(Image.new("L", FLAT), "GIF"), READ),
    "flat WebP over its limit": (lambda: saved(Image.new("RGB", FLAT), "WEBP", method=0), "limit of 20000000 pixels"),
    "flat AVIF": (lambda: saved(Image.new("RGB", (3_000, 3_000)), "AVIF", speed=10), READ),
    "JPEG of 150 scans": (lambda: jpeg_of_scans(150), "scans of 64 x 64 px: a JPEG may have 100"),
    "JPEG of 20,000 scans": (lambda: jpeg_of_scans(20_000), "scans of 64 x 64 px"),
    "JPEG of 90 large scans": (lambda: jpeg_of_scans(90, 4_000), "scans of 4000 x 4000 px"),
    "JPEG of 80 small scans": (lambda: jpeg_of_scans(80), READ),
    "JPEG of 65500 px": (lambda: patched(saved(NOISE, "JPEG"), b"\xff\xc0", 5, b"\xff\xdc\xff\xdc"), "over the limit"),
    "JPEG of no height": (lambda: patched(saved(NOISE, "JPEG"), b"\xff\xc0", 5, b"\0\0"), REFUSED),
    "JPEG of 12 bits": (lambda: patched(saved(NOISE, "JPEG"), b"\xff\xc0", 4, b"\x0c"), REFUSED),
    "JPEG of 200 components": (lambda: patched(saved(NOISE, "JPEG"), b"\xff\xc0", 9, b"\xc8"), REFUSED),
    "JPEG without tables": (lambda: saved(NOISE, "JPEG").replace(b"\xff\xdb", b"\xff\xe5"), REFUSED),
    "JPEG with 100,000 comments": (
        lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 100_000 + saved(NOISE, "JPEG")[2:], "read|refused"),
    "CMYK JPEG with odd Adobe marker": (
        lambda: patched(saved(NOISE.convert("CMYK"), "JPEG"), b"Adobe", 11, b"\x09"), "read|refused"),
    "JPEG that ends": (lambda: saved(NOISE, "JPEG")[:200], REFUSED),
    "WebP canvas of 16 million px a side": (
        lambda: webp(b"VP8X", b"\x02\0\0\0" + b"\xff" * 6), "16777216 x 16777216 px is over the limit"),
    "WebP canvas of 16383 px": (lambda: webp(b"VP8X", b"\x02\0\0\0" + b"\xfe\x3f\0" * 2), "over the limit of 20000000"),
    "lossless WebP of 16384 px": (lambda: webp(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(20)), "over the limit"),
    "lossy WebP of 16383 px": (
        lambda: webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(20)), "over the limit"),
    "WebP that ends": (lambda: saved(NOISE, "WEBP")[:60], REFUSED),
    "WebP of no chunk": (lambda: b"RIFF\4\0\0\0WEBP", REFUSED),
    "GIF screen of 65535 px": (lambda: patched(saved(NOISE, "GIF"), b"GIF8", 6, b"\xff" * 4), "over the limit|refused"),
    "GIF frame beyond the screen": (
        lambda: b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;", "over the limit|refused"),
    "GIF of garbage": (lambda: b"GIF89a\4\0\4\0\0\0\0,\0\0\0\0\4\0\4\0\0\2" + b"\xff" * 600, "read|refused"),
    "GIF with a megabyte of comments": (lambda: b"GIF89a\4\0\4\0\0\0\0" + b"!\xfe\1a\0" * 200_000 + b";", REFUSED),
    "BMP of 2 billion px": (lambda: patched(saved(NOISE, "BMP"), b"BM", 18, b"\xff\xff\xff\x7f" * 2), REFUSED),
    "BMP of negative width": (lambda: patched(saved(NOISE, "BMP"), b"BM", 18, b"\xff\xff\xff\xff"), "read|refused"),
    "BMP of 7 bits": (lambda: patched(saved(NOISE, "BMP"), b"BM", 28, b"\7\0"), REFUSED),
    "BMP whose pixels lie beyond": (lambda: patched(saved(NOISE, "BMP"), b"BM", 10, b"\xff\xff\xff\x7f"), REFUSED),
    "BMP of an unknown header": (lambda: patched(saved(NOISE, "BMP"), b"BM", 14, b"\x07\0\0\0"), REFUSED),
    "TIFF of 4 billion px": (lambda: tiff(w=(256, 4, 2**32 - 1), h=(257, 4, 2**32 - 1)), REFUSED),
    "TIFF of one tall strip": (lambda: tiff(h=(257, 4, 2**31)), REFUSED),
    "TIFF with tiles of 65520 px": (lambda: tiff(a=(322, 4, 65_520), b=(323, 4, 65_520), c=(259, 3, 5)), REFUSED),
    "TIFF with tiles of text": (lambda: tiff(a=(322, 2, 65_520), b=(323, 4, 65_520)), "read|refused"),
    "TIFF packed with LZMA": (lambda: tiff(c=(259, 3, 34_925)), "is a TIFF of compression|refused"),
    "TIFF packed with JPEG": (lambda: saved(NOISE, "TIFF", compression="jpeg"), "is a TIFF of compression jpeg"),
    "TIFF of floats": (lambda: saved(Image.new("F", (9, 9)), "TIFF"), "pixels of mode F"),
    "TIFF of 32 bits": (lambda: saved(Image.new("I", (9, 9)), "TIFF"), "pixels of mode I"),
    "TIFF in Lab": (lambda: saved(Image.new("LAB", (9, 9)), "TIFF"), "pixels of mode LAB"),
    "TIFF of 65535 fields": (lambda: tiff_that_claims(65_535, 8), REFUSED),
    "TIFF that follows itself": (lambda: tiff_that_claims(1, 8), REFUSED),
    "TIFF whose strip lies beyond": (lambda: tiff(o=(273, 4, 2**31)), REFUSED),
    "TIFF whose strip is endless": (lambda: tiff(o=(279, 4, 2**31), c=(259, 3, 5)), "read|refused"),
    "BigTIFF of nothing": (lambda: b"II+\0\x08\0\0\0" + b"\xff" * 8, REFUSED),
    "AVIF that claims 16 px of 3000": (lambda: patched(
        saved(Image.new("RGB", (3_000, 3_000)), "AVIF", speed=10), b"ispe", 8, struct.pack(">II", 16, 16)),
        "read|refused"),
    "AVIF that claims 60000 px": (
        lambda: patched(saved(NOISE, "AVIF"), b"ispe", 8, struct.pack(">II", 60_000, 60_000)), REFUSED),
    "AVIF that ends": (lambda: saved(NOISE, "AVIF")[:250], REFUSED),
    "AVIF of a name": (lambda: b"\0\0\0\x14ftypavif" + bytes(8), REFUSED),
    **{f"no image: {name}": (lambda data=data: data, "not a JPEG, PNG, WebP, GIF, BMP") for name, data in {
        "nothing": b"", "a byte": b"\xff", "HTML": b"<html>" * 9, "SVG": b'<svg><use href="#a"/></svg>',
        "PDF": b"%PDF-1.7",
        "HEIC": b"\0\0\0\x18ftypheic" + bytes(99), "PSD": b"8BPS\0\1", "zip": b"PK\3\4" + bytes(99),
        "ELF": b"\x7fELF" * 9,
        "10 MB of zeros": bytes(10**7)}.items()},
    **{f"only the first bytes of {name}": (lambda data=data: data, REFUSED) for name, data in {
        "a JPEG": b"\xff\xd8\xff", "a PNG": b"\x89PNG\r\n\x1a\n", "a GIF": b"GIF89a", "a BMP": b"BM",
        "a TIFF": b"MM\0*"}.items()},
}  # fmt: skip

# ------------------------------------------------------------------------------------------------ archives


def tar_of(*blocks: bytes) -> bytes:
    return b"".join(block + bytes(-len(block) % 512) for block in blocks) + bytes(1024)


def head(name: str = "a/1.png", size: int = 0, kind: bytes = tarfile.REGTYPE, **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(text: bytes, kind: bytes = tarfile.XHDTYPE) -> list[bytes]:
    return [head("p", len(text), kind), text]


def record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def sparse_blocks(count: int) -> list[bytes]:
    """An old GNU sparse member whose map goes on for ``count`` blocks."""
    block = bytearray(head(kind=tarfile.GNUTYPE_SPARSE))
    block[482] = 1
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    more = b"".join(b"%011o\0" % number for number in range(1, 43)) + b"\1"
    return [bytes(block), more.ljust(512, b"\0") * count]


def gz_of_zeros(first: bytes, megabytes: int) -> bytes:
    """``first`` and zeros, as members of one gzip file that is quick to make."""
    return gzip.compress(first, mtime=0) + gzip.compress(bytes(2**26), 1, mtime=0) * (megabytes // 64)


def zip_of(names: int = 1, data: bytes = b"x", method: int = zipfile.ZIP_DEFLATED, **fields: object) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(names):
            info = zipfile.ZipInfo(f"a/{number}.png")
            info.compress_type = method
            for field, value in fields.items():
                setattr(info, field, value)
            archive.writestr(info, data)
    return file.getvalue()


def overlapping_zip(copies: int) -> bytes:
    """The same member, listed over and over."""
    data = zip_of(1, bytes(2**20))
    at = data.index(b"PK\1\2")
    end = data.index(b"PK\5\6")
    entries = data[at:end] * copies
    return data[:at] + entries + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, copies, copies, len(entries), at, 0)


def samples(*members: tuple[str, bytes], packed: bool = False) -> bytes:
    data = tar_of(*(part for name, content in members for part in (head(name, len(content)), content)))
    return gzip.compress(data, 1, mtime=0) if packed else data


def read_files(path: Path, out: Path, **fields: object) -> None:
    ingest(DatasetSpec(**fields), str(path), out)


def archive(make: Callable[[], bytes], name: str = "set.tar", **fields: object) -> Case:
    def prepare(folder: Path) -> Callable[[], object]:
        path = folder / name
        path.write_bytes(make())
        return partial(read_files, path, folder / "out", **fields)

    return prepare


SPELLINGS = ["".join(c.upper() if n >> i & 1 else c for i, c in enumerate("json")) for n in range(16)]
NESTED = b"".join(record(f"k{n:04d}", "") for n in range(1_000))
DAMAGED = "truncated or damaged"
ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "pax header of 310 kB": (lambda: tar_of(*pax(b"9 a=bcde\n" * 34_000), head()), DAMAGED),
    "pax keys that overlap": (lambda: tar_of(*pax(b"2 " * 8_000 + b"="), head()), "read|refused"),
    "pax headers in one another": (lambda: tar_of(*pax(NESTED) * 30, head()), DAMAGED),
    "pax headers nested 300 deep": (lambda: tar_of(*pax(record("a", "b")) * 300, head()), DAMAGED),
    "pax size of 10^30": (lambda: tar_of(*pax(record("size", "9" * 30)), head()), DAMAGED),
    "pax size below zero": (lambda: tar_of(*pax(record("size", "-512")), head()), DAMAGED),
    "pax path outside": (lambda: tar_of(*pax(record("path", "../../x.png")), head()), "points outside"),
    "pax of an unknown charset": (lambda: tar_of(*pax(b"99 hdrcharset=\xff\n"), head()), DAMAGED),
    "pax record of length zero": (lambda: tar_of(*pax(b"0 a=b\n"), head()), DAMAGED),
    "pax sparse map of 3 MB": (
        lambda: tar_of(*pax(record("GNU.sparse.map", "1,1," * 800_000 + "1")), head()), DAMAGED),
    "pax sparse map of text": (lambda: tar_of(*pax(record("GNU.sparse.map", "a,b")), head()), DAMAGED),
    "pax sparse map in the data": (lambda: tar_of(
        *pax(record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")), head(size=2**20),
        b"99999999\n" + b"1\n" * 500_000), DAMAGED),
    "pax sparse file of a terabyte": (
        lambda: tar_of(*pax(record("GNU.sparse.map", "0,1") + record("GNU.sparse.size", str(2**40))), head()), REFUSED),
    "old sparse map of 3 MB": (lambda: tar_of(*sparse_blocks(6_000)), DAMAGED),
    "old sparse map": (lambda: tar_of(*sparse_blocks(1)), "damaged|sparse"),
    "global headers that accumulate": (lambda: tar_of(*(
        part for n in range(400) for part in (
            *pax(b"".join(record(f"k{n}-{m}", "x" * 900) for m in range(10)), tarfile.XGLTYPE), head(f"a/{n}.png")
        ))), "over 100 fields in global headers"),
    "long name of a terabyte": (lambda: tar_of(head(size=2**40, kind=tarfile.GNUTYPE_LONGNAME)), DAMAGED),
    "long names in one another": (
        lambda: tar_of(*[head(size=4, kind=tarfile.GNUTYPE_LONGNAME), b"abc\0"] * 2_000, head()), DAMAGED),
    "long name of 100 kB": (
        lambda: tar_of(head(size=10**5, kind=tarfile.GNUTYPE_LONGNAME), b"x" * 10**5, head()), DAMAGED),
    "a member of a terabyte": (lambda: tar_of(head(size=2**40)), DAMAGED),
    "a device": (lambda: tar_of(head(kind=tarfile.CHRTYPE)), "the special file 'a/1.png'"),
    "a pipe": (lambda: tar_of(head(kind=tarfile.FIFOTYPE)), "the special file"),
    "a hard link": (lambda: tar_of(head(kind=tarfile.LNKTYPE, linkname="/etc/passwd")), "the link 'a/1.png'"),
    "a symbolic link": (lambda: tar_of(head(kind=tarfile.SYMTYPE, linkname="/etc/passwd")), "the link"),
    "an unknown kind": (lambda: tar_of(head(kind=b"Z")), "the special file"),
    "a name that leads out": (lambda: tar_of(head("../../x.png")), "points outside"),
    "a name from the root": (lambda: tar_of(head("/etc/x.png")), "points outside"),
    "a name of another drive": (lambda: tar_of(head("C:\\x.png")), "points outside"),
    "a tar of garbage": (lambda: b"\xff" * 5_000, DAMAGED),
    "a tar of zeros": (lambda: bytes(10_240), REFUSED),
    "a tar of nothing": (lambda: b"", "is empty"),
    "a gzip of nothing": (lambda: gzip.compress(b"", mtime=0), REFUSED),
    "a gzip bomb in one member": (lambda: gz_of_zeros(head(size=4 * 2**30), 4_096), "unpacks to more than 100 times"),
    "a gzip bomb of images": (lambda: gz_of_zeros(head("a/1.png", 2**27), 320), "damaged|unpacks|refused"),
    "a gzip that ends": (lambda: gzip.compress(tar_of(head()) * 99, mtime=0)[:-20], DAMAGED),
    "a gzip of garbage": (lambda: b"\x1f\x8b\x08\0" + b"\xfe" * 999, DAMAGED),
    "an xz under the name of a tar": (lambda: lzma.compress(bytes(10**6)), DAMAGED),
    "a zstd under the name of a tar": (lambda: b"\x28\xb5\x2f\xfd" + bytes(99), DAMAGED),
    "a zip of a member that overlaps": (lambda: overlapping_zip(20_000), "its members overlap"),
    "a zip that unpacks to 320 MB": (lambda: zip_of(5, bytes(2**26)), "unpacks to more than 100 times"),
    "a zip packed with LZMA": (lambda: zip_of(method=zipfile.ZIP_LZMA), "packed by method 14"),
    "a zip packed with something": (
        lambda: zip_of().replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x63\0"), "packed by method 99|damaged"),
    "a zip with a link": (lambda: zip_of(external_attr=0o120777 << 16), "the link or special file"),
    "a zip that says it is encrypted": (
        lambda: zip_of().replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"), "is encrypted"),
    "a zip with a wrong sum": (lambda: zip_of(data=b"\x89PNG" * 9, method=0).replace(b"\x89PNG", b"\x88PNG"), DAMAGED),
    "a zip of its first bytes": (lambda: b"PK\3\4", DAMAGED),
    "a zip of its last bytes": (lambda: b"PK\5\6" + b"\xff" * 18, DAMAGED),
    "a zip that leads out": (lambda: zip_of().replace(b"a/0.png", b"../.png"), "points outside"),
    "a shard with a member twice": (lambda: samples(("a.png", b"x"), ("a.png", b"y"), ("a.txt", b"z")), "twice"),
    "a shard with a key in 16 spellings": (
        lambda: samples(("a.png", b"x"), *((f"a.{name}", bytes(2**20)) for name in SPELLINGS)), "twice"),
    "a shard of large images in one sample": (lambda: samples(
        ("a.txt", b"z"), *((f"a.{name}", b"\x89PNG" + bytes(90 * 2**20)) for name in ("png", "jpg")), packed=True),
        REFUSED),
    "a shard with a deep json": (lambda: samples(("a.png", b"x"), ("a.json", b"[" * 500_000)), REFUSED),
    "a shard with a large number": (lambda: samples(("a.png", b"x"), ("a.json", b'{"label":' + b"9" * 10**5)), REFUSED),
    "a shard with an endless number": (lambda: samples(("a.png", b"x"), ("a.json", b'{"label":1e999}')), REFUSED),
    "a shard with text in Latin-1": (lambda: samples(("a.png", b"x"), ("a.txt", b"caf\xe9")), "is not UTF-8 text"),
    "a shard with half of UTF-16": (lambda: samples(("a.png", b"x"), ("a.txt", b"\xff\xfea")), "is not UTF-8 text"),
    "a shard with text of 2 MB": (lambda: samples(("a.png", b"x"), ("a.txt", b"x" * 2**21)), "larger than the 1048576"),
}  # fmt: skip

# ------------------------------------------------------------------------------------------------ tables


def parquet(**columns: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, store_schema=False, dictionary_pagesize_limit=2**30)
    return file.getvalue()


def repeated(cell: object, times: int, kind: pa.DataType) -> pa.Array:
    """A column that holds one cell, and says many times that it is meant."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([cell], kind))


NOT_TEXT = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfa")]
)
TABLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "an open quote": (lambda: b'path,caption\na.png,"b\nc,d,e\n', "has a quote in line 2"),
    "a quote that may be either": (lambda: b'path,caption\na,"b\nc,d"\n', "can be read in two ways"),
    "quotes of 2 MB": (lambda: b'path,caption\na,"' + b'""' * 1_000_000 + b'"\n', REFUSED),
    "a line of 20 MB": (lambda: b"path,caption\na," + b"x" * 20_000_000, REFUSED),
    "a header of 100 kB": (lambda: b"path,caption" + b",x" * 50_000 + b"\n", "its first line has 65536 bytes or more"),
    "20,000 columns": (lambda: b"path,caption" + b",x" * 20_000 + b"\n" + b"," * 20_001, REFUSED),
    "columns twice": (lambda: b"path,path,caption\na,b,c\n", "has 2 columns called path"),
    "half of UTF-16": (lambda: b"\xff\xfep\0a", REFUSED),
    "zero bytes": (lambda: b"path,caption\na.png,\0\n", "holds zero bytes"),
    "text in Latin-1": (lambda: b"path,caption\na.png,caf\xe9\n", "is not UTF-8 text"),
    "a path of a megabyte": (lambda: b"path,caption\n" + b"x" * 2**20 + b",b\n", "its path has 1048576 characters"),
    "a path that leads out": (lambda: b"path,caption\n../../etc/passwd,b\n", "leads out of the table's folder"),
    "a cell too many": (lambda: b"path,caption\na,b\nc,d,e\n", "cannot be read as a CSV"),
    "Parquet with undecodable text": (lambda: parquet(path=["a"], caption=NOT_TEXT), "is not UTF-8 text"),
    "Parquet with an undecodable path": (lambda: parquet(path=NOT_TEXT, caption=["a"]), REFUSED),
    "Parquet with a date that none is": (
        lambda: parquet(path=["a"], caption=["b"], label=pa.array([2**62], pa.timestamp("us"))), REFUSED),
    "Parquet with an infinite label": (lambda: parquet(path=["a"], caption=["b"], label=[float("inf")]), REFUSED),
    "Parquet with a label of 10^300": (lambda: parquet(path=["a"], caption=["b"], label=[1e300]), REFUSED),
    "Parquet with lists as paths": (lambda: parquet(path=[["a"]], caption=["b"]), "has no path"),
    "Parquet with a million rows in a kilobyte": (
        lambda: parquet(path=pa.nulls(10**6, pa.string()), caption=pa.nulls(10**6, pa.string())),
        "it claims 1000000 rows"),
    "Parquet that ends": (lambda: parquet(path=["a"], caption=["b"])[:-20], "cannot be read as a CSV"),
    "Parquet of its first bytes": (lambda: b"PAR1" + bytes(40) + b"\xff\xff\xff\x7fPAR1", "cannot be read as a CSV"),
}  # fmt: skip

PNG = saved(NOISE, "PNG")
PARQUETS: dict[str, tuple[Callable[[], bytes], str]] = {
    "undecodable captions": (lambda: parquet(image=[PNG], caption=NOT_TEXT), "is not UTF-8 text"),
    "undecodable labels": (lambda: parquet(image=[PNG], label=NOT_TEXT), READ),
    "undecodable splits": (lambda: parquet(image=[PNG], split=NOT_TEXT), "which is not known"),
    "an undecodable status": (lambda: parquet(image=[PNG], status=NOT_TEXT), REFUSED),
    "images that are text": (lambda: parquet(image=[{"bytes": "x"}]), REFUSED),
    "images that are none": (lambda: parquet(image=[None, PNG], caption=["a", "b"]), "the row holds no image"),
    "a large image for each of 2,000 rows": (
        lambda: parquet(image=repeated(bytes(2**24), 2_000, pa.binary())), "unpack to far more"),
    "a large label for each of 2,000 rows": (
        lambda: parquet(image=[PNG] * 2_000, label=repeated("x" * 2**24, 2_000, pa.string())),
        "unpack to far more"),
    "a million rows in a kilobyte": (lambda: parquet(image=pa.nulls(10**6, pa.binary())), "it claims 1000000 rows"),
    "a file that ends": (lambda: parquet(image=[PNG])[:-20], "cannot be read as a Parquet file"),
}  # fmt: skip

# ------------------------------------------------------------------------------------------------ pickles of CIFAR


def colliding() -> bytes:
    """A pickled dict whose keys share a hash, written by hand: to make it takes as long as to read it."""
    items = [pickle.dumps(number * (2**61 - 1), 2)[2:-1] + b"K\0" for number in range(1, 20_000)]
    return b"\x80\x02}(" + b"".join(items) + b"u."


PICKLES = {
    "LONG_BINPUT of 4 GB": b"\x80\x02}r\xff\xff\xff\x0f.",
    "LONG_BINPUT of 100 million": b"\x80\x02}r\x00\xe1\xf5\x05.",
    "LONG_BINGET of nothing": b"\x80\x02j\xff\xff\xff\x0f.",
    "bytes of an exabyte": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f.",
    "text of a gigabyte": b"\x80\x02X\x00\x00\x00\x40.",
    "a frame of an exabyte": b"\x80\x04\x95" + b"\xff" * 7 + b"\x0f.",
    "colliding keys": colliding(),
    "colliding tuples": pickle.dumps({(number, 0): 0 for number in range(20_000)}, 2),
    "a long of 100 kB": b"\x80\x02\x8b" + struct.pack("<i", 10**5) + b"\x7f" * 10**5 + b".",
    "a number of 100,000 digits": b"I" + b"9" * 10**5 + b"\n.",
    "a call of system": b"cos\nsystem\n(S'true'\ntR.",
    "a global by stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "an encoded text again and again": (
        b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", 10**5) + b"x" * 10**5
        + b"q\x01X\x06\0\0\0latin1q\x02](" + b"h\x00h\x01h\x02\x86R" * 5_000 + b"e."
    ),
    "lists in one another": b"\x80\x02" + b"](" * 200_000 + b"e" * 200_000 + b".",
    "five million operations": b"\x80\x02" + b"N" * 5_000_000 + b".",
    "no stop": b"\x80\x02}",
}  # fmt: skip

# ------------------------------------------------------------------------------------------------ texts, specs, folders

PATTERNS = ["{5..3}", "{a}" * 1_000, "{a,b}" * 1_000, "{0..999999999}", "{0..249999}{a,b}", "{0..9}" * 50]
PATTERNS += ["x" * 4_000 + "{0..99999}", "{" * 5_000, "{}" * 5_000, "{0..9" * 1_000 + "}" * 1_000, "{,}" * 30]
MOST = 100_000  # characters that a caption may be allowed
TEXTS = {
    "ampersands": ("&" * MOST, MOST),
    "entities in entities": ("&" + "amp;" * 24_000, MOST),
    "open tags": ("<a " * 30_000, MOST),
    "tags in tags": ("<b" * 20_000 + ">" * 20_000, MOST),
    "attributes without end": ("<a" + " b=c" * 24_000, MOST),
    "blanks without end": ("<a" + " " * 99_000, MOST),
    "a comment without end": ("<!--" * 20_000, MOST),
    "combining marks": ("e" + "\u0301\u0323" * 49_999, MOST),
    "half a million captions": ("a\n" * 500_000, 1_000),
    "different captions": ("\n".join(map(str, range(10**5))), 1_000),
    "half surrogates": ("\ud800" * MOST, MOST),
    "a caption too long": ("x" * 10**6, 1_000),
}
HUGE = 10**12
SPECS = [("moco_v2", "queue_size"), ("moco_v2", "projector_hidden_dim"), ("moco_v2", "embedding_dim")]
SPECS += [("byol", "projector_hidden_dim"), ("byol", "predictor_hidden_dim"), ("simclr", "projector_hidden_dim")]
SPECS += [("simsiam", "embedding_dim"), ("msf", "queue_size"), ("jigsaw", "hidden_dim"), ("jigsaw", "tile_dim")]
SPECS += [("mae", "decoder_depth"), ("mae", "decoder_dim")]


def chain(folder: Path, depth: int) -> Path:
    path = folder.joinpath(*["d"] * depth)
    path.mkdir(parents=True)
    (path / "1.png").write_bytes(saved(NOISE, "PNG"))
    return folder


def maze(folder: Path) -> Path:
    rooms = [folder / f"room{number:02d}" for number in range(20)]
    for room in rooms:
        room.mkdir(parents=True)
        (room / "1.png").write_bytes(saved(NOISE, "PNG"))
    for room in rooms:
        for other in rooms:
            (room / f"to-{other.name}").symlink_to(other)
    return folder


def doubling(folder: Path) -> Path:
    for number in range(40):
        (folder / f"{number:02d}").mkdir(parents=True)
        for name in ("a", "b"):
            (folder / f"{number:02d}" / name).symlink_to(folder / f"{number + 1:02d}")
    (folder / "40").mkdir()
    return folder / "00"


def self_link(folder: Path) -> Path:
    folder.mkdir()
    (folder / "x").symlink_to(folder / "x")
    (folder / "1.png").symlink_to(folder / "1.png")
    return folder


def loop(folder: Path) -> Path:
    folder.mkdir()
    (folder / "again").symlink_to(folder)
    return folder


def pipe(folder: Path) -> Path:
    os.mkfifo(folder)
    return folder


def folder_with(special: Callable[[Path], object]) -> Callable[[Path], Path]:
    def prepare(folder: Path) -> Path:
        (folder / "a").mkdir(parents=True)
        special(folder / "a/1.png")
        return folder

    return prepare


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "folders 100 deep": (lambda folder: chain(folder, 100), "more than 64 folders deep"),
    "folders 60 deep": (lambda folder: chain(folder, 60), READ),
    "a maze of links": (maze, "more than (100 links|64 folders)"),
    "links that double 40 times": (doubling, "more than 100 links lead to"),
    "links to themselves": (self_link, REFUSED),
    "a folder with a link to itself": (loop, REFUSED),
    "a pipe as the data": (pipe, "neither a file nor a folder"),
    "a file of the kernel": (lambda _: Path("/proc/version"), "is empty"),
    "a device": (lambda _: Path("/dev/zero"), "neither a file nor a folder"),
    "a link to a device": (folder_with(lambda path: path.symlink_to("/dev/zero")), REFUSED),
    "a link to a file of the kernel": (folder_with(lambda path: path.symlink_to("/proc/version")), REFUSED),
    "a pipe among the images": (folder_with(os.mkfifo), REFUSED),
}


def place(make: Callable[[Path], Path]) -> Case:
    return lambda folder: partial(read_files, make(folder / "set"), folder / "out")


def validate(kind: str, field: str) -> None:
    method = {"kind": kind, field: HUGE}
    backbone = {"kind": "vit"} if kind == "mae" else {"kind": "resnet"}
    TypeAdapter(TrainSpec).validate_python({"method": method, "backbone": backbone})


def clean(text: str, longest: int) -> None:
    clean_captions(text, longest)
    decode_text(text.encode("utf-8", "surrogatepass")[:1000])


def bound(function: Callable[..., object], *arguments: object) -> Case:
    return lambda _: partial(function, *arguments)


def read_table(make: Callable[[], bytes]) -> Case:
    return archive(make, "t.csv", source=FilesSourceSpec(layout="pairs"))


CASES: dict[str, tuple[Case, str]] = {
    **{f"image: {name}": (image(make), expected) for name, (make, expected) in IMAGES.items()},
    **{f"image: damaged {kind} {seed}": (damaged(kind, seed), READ)
       for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") for seed in (0, 1)},
    **{f"archive: {name}": (archive(make), expected) for name, (make, expected) in ARCHIVES.items()},
    **{f"table: {name}": (read_table(make), expected) for name, (make, expected) in TABLES.items()},
    **{f"parquet: {name}": (archive(make, "0.parquet"), expected) for name, (make, expected) in PARQUETS.items()},
    **{f"pickle: {name}": (bound(_unpickle, "data_batch_1", data), "is not a CIFAR batch")
       for name, data in PICKLES.items()},
    **{f"pattern: {pattern[:20]} ({len(pattern)})": (bound(expand_braces, pattern), "read|refused")
       for pattern in PATTERNS},
    **{f"caption: {name}": (bound(clean, *text), "read|refused") for name, text in TEXTS.items()},
    **{f"spec: {kind}.{field}": (bound(validate, kind, field), REFUSED) for kind, field in SPECS},
    **{f"place: {name}": (place(make), expected) for name, (make, expected) in PLACES.items()},
}  # fmt: skip


def peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def run_alone(name: str, folder: Path) -> dict[str, object]:
    """One case, in a process of its own: what it gave, how long and how much memory it took."""
    signal.alarm(HANG_S)
    before_mb = started = 0.0
    try:
        folder.mkdir()
        call = CASES[name][0](folder)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
        before_mb, started = peak_mb(), time.process_time()
        call()
        outcome = "read"
    except (UserError, ValidationError) as error:
        outcome = f"refused: {' '.join(str(error).split())[:400]}"
    except BaseException as error:
        outcome = f"failed: {type(error).__name__}: {error}"[:400]
    return {"case": name, "outcome": outcome, "s": time.process_time() - started, "mb": peak_mb() - before_mb}


def run_all(folder: Path) -> Iterator[str]:
    warnings.simplefilter("error")
    gc.freeze()  # a collection in a fork would copy the memory that it shares
    for number, name in enumerate(CASES):
        read_end, write_end = os.pipe()
        if (child := os.fork()) == 0:
            os.write(write_end, json.dumps(run_alone(name, folder / str(number))).encode())
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as file:
            line = file.read().decode()
        _, status = os.waitpid(child, 0)
        yield line or json.dumps({"case": name, "outcome": f"failed: ended by {status}", "s": HANG_S, "mb": 0})


if __name__ == "__main__":
    for line in run_all(Path(sys.argv[1])):
        print(line, flush=True)
