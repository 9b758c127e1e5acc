"""Ingestion beside webdataset's own writer, and beside a plain copy.

    python -m tests.benchmarks.bench_ingest [--data CIFAR10] [--quick] [--out FOLDER]

From one uncompressed tar of JPEG files (CIFAR-10's, or drawn scenes). Ours lists, decodes and hashes every image and
writes shards and tables. webdataset's ``ShardWriter`` gets the same members as they are, and once decoded by Pillow
first, as img2dataset does before it writes (img2dataset itself asks for webdataset below 0.3, so it cannot be beside
this one). The ceiling copies every member with the standard library. Then memory and speed of ours as the set grows,
on 8 px images: what is held must not grow with it. One process a contender.
"""

import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from ssl_backdoor.data.images import encode_jpeg75
from ssl_backdoor.data.ingest import ingest
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec
from tests.benchmarks.harness import Comparison, Options, alone, main, timed

SCENES, QUICK_SCENES = 10_000, 300
GROWTH, QUICK_GROWTH = (60_000, 600_000, 3_000_000), (500, 2_000)
SPEC = DatasetSpec(source=FilesSourceSpec())


def files_of(data: str) -> Iterator[tuple[str, bytes]]:
    """Every file of a folder or an archive."""
    if Path(data).is_dir():
        for file in sorted(Path(data).rglob("*.*")):
            yield str(file.relative_to(data)), file.read_bytes()
        return
    with tarfile.open(data, "r|*") as archive:
        for member in archive:
            if member.isfile():
                yield member.name, archive.extractfile(member).read()


def write_tar(path: Path, files: Iterator[tuple[str, bytes]]) -> int:
    """The number of files."""
    counted = count()
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            archive.members.clear()  # tarfile would hold them all
            next(counted)
    return next(counted)


def drawn(num_images: int, side_px: int) -> Iterator[tuple[str, bytes]]:
    """Training JPEGs of ten classes; 64 different ones, over and over."""
    pixels = stream(0, "bench_ingest").integers(0, 256, (64, 4, 4, 3), dtype="uint8")
    few = [encode_jpeg75(np.asarray(Image.fromarray(one).resize((side_px, side_px)))) for one in pixels]
    for index in range(num_images):
        yield f"train/class-{index % 10}/{index:07d}.jpg", few[index % len(few)]


def ours(archive: str, out: Path) -> None:
    ingest(SPEC, archive, out)


def written(archive: str, out: Path) -> None:
    """By webdataset, as they are."""
    with webdataset.ShardWriter(f"{out}/%06d.tar", maxcount=10_000, verbose=0) as writer:
        for name, data in files_of(archive):
            writer.write({"__key__": name.rpartition(".")[0].replace("/", "-"), "jpg": data, "cls": name.split("/")[1]})


def decoded_and_written(archive: str, out: Path) -> None:
    """By webdataset, each image decoded before."""
    with webdataset.ShardWriter(f"{out}/%06d.tar", maxcount=10_000, verbose=0) as writer:
        for name, data in files_of(archive):
            Image.open(io.BytesIO(data)).load()
            writer.write({"__key__": name.rpartition(".")[0].replace("/", "-"), "jpg": data, "cls": name.split("/")[1]})


def copied(archive: str, out: Path) -> None:
    write_tar(out / "copy.tar", files_of(archive))


CONTENDERS: dict[str, Callable[[str, Path], None]] = {
    "ours": ours,
    "webdataset's writer": written,
    "webdataset's writer, images decoded": decoded_and_written,
    "copy": copied,
}


def measure(name: str, archive: str) -> tuple[float, float]:
    """Seconds and MB of peak memory of one contender, to a folder that goes; in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.tar"
        write_tar(few, drawn(64, 32))
        for place in ("warm", "out"):
            (Path(folder) / place).mkdir()
        CONTENDERS[name](str(few), Path(folder) / "warm")  # imports
        return timed(lambda: CONTENDERS[name](archive, Path(folder) / "out"))


def run(options: Options) -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "images.tar"
        files = files_of(options.data) if options.data else drawn(QUICK_SCENES if options.quick else SCENES, 32)
        num_images = write_tar(archive, files)
        costs: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
        for repetition in range(options.repetitions):
            for name in list(CONTENDERS)[:: 1 if repetition % 2 == 0 else -1]:
                costs[name].append(alone(measure, name, str(archive)))
        case = f"{num_images:,} JPEGs{' of CIFAR-10' if options.data else ', 32 px'}"
        rates = {name: [num_images / seconds for seconds, _ in each] for name, each in costs.items()}
        yield Comparison(case, "images/s", rates)
        yield Comparison(case, "MB of memory", {name: [mb for _, mb in each] for name, each in costs.items()}, "less")
        archive.unlink()
        for num_images in QUICK_GROWTH if options.quick else GROWTH:
            write_tar(archive, drawn(num_images, 8))
            seconds, peak_mb = alone(measure, "ours", str(archive))
            yield Comparison(f"{num_images:,} JPEGs, 8 px", "images/s", {"ours": [num_images / seconds]}, note="once.")
            yield Comparison(f"{num_images:,} JPEGs, 8 px", "MB of memory", {"ours": [peak_mb]}, "less")


if __name__ == "__main__":
    main(run, __doc__)
