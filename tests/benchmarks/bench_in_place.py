"""An ingest of shards on S3 that leaves the images there, beside one that copies them and webdataset's bare reader.

    python -m tests.benchmarks.bench_in_place [--quick] [--out FOLDER]

Drawn JPEGs of 256 px with captions and labels, in shards on SeaweedFS on the same machine. Ours lists, reads, decodes
and hashes every image, and writes an index or copies; blocks are cached on the disk, anew in each repetition.
webdataset streams the same shards by curl from signed addresses, and does nothing with them, or decodes each image by
Pillow. One process a contender. Then what training reads from the index: all images in a random order.
"""

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import webdataset
from PIL import Image

from ssl_backdoor.data.images import encode_jpeg75
from ssl_backdoor.data.ingest import ingest
from ssl_backdoor.data.stored import open_dataset
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import DatasetSpec
from ssl_backdoor.stages import IngestStage, StageCall, run_stage
from ssl_backdoor.store import open_store
from tests.benchmarks.harness import Comparison, Options, alone, main, timed
from tests.support.seaweedfs import ObjectStore, object_store_server

NUM_IMAGES, QUICK_IMAGES, NUM_SHARDS, SIDE_PX = 2_000, 60, 20, 256


def write_shards(server: ObjectStore, num_images: int) -> int:
    """Bytes of all."""
    pixels = stream(0, "bench_in_place").integers(0, 256, (64, 24, 24, 3), dtype="uint8")
    few = [encode_jpeg75(np.asarray(Image.fromarray(one).resize((SIDE_PX, SIDE_PX)))) for one in pixels]
    size = 0
    for shard in range(NUM_SHARDS):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for number in range(shard, num_images, NUM_SHARDS):
                about = json.dumps({"caption": f"picture number {number}", "label": f"class-{number % 10}"}).encode()
                for suffix, data in (("jpg", few[number % len(few)]), ("json", about)):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        server.client().put_object(Bucket=server.bucket, Key=f"pairs/{shard:05d}.tar", Body=file.getvalue())
        size += len(file.getvalue())
    return size


def ours(data: str, _: list[str], out: Path) -> None:
    ingest(DatasetSpec(copy=False), data, out)


def copied(data: str, _: list[str], out: Path) -> None:
    ingest(DatasetSpec(), data, out)


def streamed(_: str, signed: list[str], __: Path) -> None:
    for _sample in webdataset.WebDataset([f"pipe:curl -sf '{url}'" for url in signed], shardshuffle=False):
        pass


def streamed_and_decoded(_: str, signed: list[str], __: Path) -> None:
    for sample in webdataset.WebDataset([f"pipe:curl -sf '{url}'" for url in signed], shardshuffle=False):
        Image.open(io.BytesIO(sample["jpg"])).load()


CONTENDERS: dict[str, Callable[[str, list[str], Path], None]] = {
    "ours": ours,
    "ours, copied": copied,
    "webdataset's reader": streamed,
    "webdataset's reader, images decoded": streamed_and_decoded,
}


def measure(name: str, data: str, signed: list[str]) -> tuple[float, float, float]:
    """Seconds, MB of peak memory and MB written of one contender; in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SSL_BACKDOOR_CACHE"] = f"{folder}/warm-cache"
        CONTENDERS[name](data[: data.index("{")] + "00000.tar", signed[:1], Path(folder) / "warm")  # imports
        os.environ["SSL_BACKDOOR_CACHE"] = f"{folder}/cache"
        seconds, peak_mb = timed(lambda: CONTENDERS[name](data, signed, Path(folder) / "out"))
        files = [file.stat().st_size for file in (Path(folder) / "out").rglob("*") if file.is_file()]
        return seconds, peak_mb, sum(files) / 1e6


def read_in_random_order(root: str, data: str, is_copied: bool) -> float:
    """Images a second that a training reads, undecoded, once their blocks are cached."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SSL_BACKDOOR_CACHE"] = folder
        store = open_store(f"{root}/{is_copied}")
        spec = DatasetSpec(copy=is_copied)
        dataset = open_dataset(store, run_stage(StageCall(IngestStage(dataset=spec), data=data), store).ref)
        rows = dataset.samples.take(pa.array(stream(0, "order").permutation(dataset.samples.num_rows)))
        seconds, _ = timed(lambda: [None for _ in dataset.read(rows)])
        return dataset.samples.num_rows / seconds


def run(options: Options) -> Iterator[Comparison]:
    num_images = QUICK_IMAGES if options.quick else NUM_IMAGES
    with object_store_server() as server, tempfile.TemporaryDirectory() as folder:
        os.environ |= server.environment
        size_mb = write_shards(server, num_images) / 1e6
        data = f"s3://{server.bucket}/pairs/{{00000..{NUM_SHARDS - 1:05d}}}.tar"
        keys = [f"pairs/{shard:05d}.tar" for shard in range(NUM_SHARDS)]
        sign = server.client().generate_presigned_url
        signed = [sign("get_object", {"Bucket": server.bucket, "Key": key}) for key in keys]
        costs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CONTENDERS}
        for repetition in range(options.repetitions):
            for name in list(CONTENDERS)[:: 1 if repetition % 2 == 0 else -1]:
                costs[name].append(alone(measure, name, data, signed))
        case = f"{num_images:,} JPEGs, {SIDE_PX} px, {size_mb:.0f} MB on S3"
        yield Comparison(
            case, "images/s", {name: [num_images / one[0] for one in each] for name, each in costs.items()}
        )
        for at, unit in ((1, "MB of memory"), (2, "MB written")):  # curl's are not webdataset's process's
            yield Comparison(
                case, unit, {name: [one[at] for one in costs[name]] for name in list(CONTENDERS)[:2]}, "less"
            )
        read = {
            name: [alone(read_in_random_order, folder, data, name == "copied") for _ in range(options.repetitions)]
            for name in ("ours", "copied")
        }
        yield Comparison("read in a random order", "images/s", read)


if __name__ == "__main__":
    main(run, __doc__)
