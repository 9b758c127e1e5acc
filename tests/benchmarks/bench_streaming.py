"""Images from a bucket, decoded and brought to one side, on one core: beside webdataset's reader and Ray Data.

    python -m tests.benchmarks.bench_streaming [--quick] [--out FOLDER]

A real SeaweedFS on loopback holds an ingested set: shards of JPEGs, 32 px or about 250. Every contender delivers each
image once, as uint8 batches of 64 with sides of 32 or 224 px, from a process that may use one core; its imports (and
Ray's start) are not counted. Ours is what a training does: shards are fetched to an empty cache, checked against their
digests, then read in random order by offset; "fetched before" is every epoch but the first. webdataset reads its
members in the order of the shards, through boto3; Ray Data's ``read_webdataset`` through Arrow's S3 client.

Random access: a few hundred images by (shard, offset, size), as poisoning needs them, beside the same ranges one after
the other through boto3, and beside webdataset's reader, which has no index and must pass over all.
"""

import importlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import torch
import webdataset
from PIL import Image

from ssl_backdoor.data.ingest import source_digest
from ssl_backdoor.data.stored import open_dataset, open_lazy_dataset
from ssl_backdoor.data.streamed import Streamed
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec
from ssl_backdoor.stages import IngestStage, StageCall, run_stage
from ssl_backdoor.store import ArtifactRef, ArtifactStore, Range, open_store
from tests.benchmarks.bench_ingest import drawn, write_tar
from tests.benchmarks.harness import Comparison, Options, alone, main, paired
from tests.support.seaweedfs import object_store_server

CASES = ((32, 32, 20_000), (250, 224, 3_000))
"""Side of the files, side that is delivered, number of images."""
BATCH, NUM_WANTED, SHARDS = 64, 300, 10
OURS, AGAIN, WEBDATASET, RAY = "ours", "ours, fetched before", "webdataset", "Ray Data"


def store_of(ref: ArtifactRef) -> ArtifactStore:
    """The store that ``ref`` came from."""
    return open_store(ref.uri.rpartition(f"/{ref.stage}/")[0])


def keys_of(ref: ArtifactRef) -> tuple[str, list[str]]:
    """The bucket, and where its shards lie."""
    store = store_of(ref)
    bucket, _, place = ref.uri.removeprefix("s3://").partition("/")
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{place}/")
    found = sorted(one["Key"] for page in pages for one in page["Contents"] if one["Key"].endswith(".tar"))
    assert len(found) == sum(name.endswith(".tar") for name in store.manifest(ref).files)
    return bucket, found


def samples_of(ref: ArtifactRef) -> Any:
    """webdataset's reader of all its shards, through boto3."""
    bucket, keys = keys_of(ref)
    client = boto3.client("s3")
    webdataset.gopen_schemes["s3"] = lambda url, *_, **__: client.get_object(
        Bucket=bucket, Key=url.removeprefix(f"s3://{bucket}/")
    )["Body"]
    return webdataset.WebDataset([f"s3://{bucket}/{key}" for key in keys], shardshuffle=False)


def framed(image: Image.Image, side_px: int) -> np.ndarray:
    return np.asarray(image if image.size == (side_px, side_px) else image.resize((side_px, side_px)))


def by_us(ref: ArtifactRef, side_px: int) -> int:
    dataset = open_dataset(store_of(ref), ref)
    streamed = Streamed(dataset, "train")
    order = torch.randperm(len(streamed), generator=torch_generator(0, "bench_streaming")).split(BATCH)
    done = 0
    for this, after in zip(order, (*order[1:], None), strict=True):
        if after is not None:
            streamed.prefetch(after)
        done += len(streamed[this])
    return done


def by_webdataset(ref: ArtifactRef, side_px: int) -> int:
    batches = (
        samples_of(ref).decode("pil").to_tuple("jpg").map_tuple(lambda image: framed(image, side_px)).batched(BATCH)
    )
    return sum(len(batch[0]) for batch in batches)


def by_ray(ref: ArtifactRef, side_px: int) -> int:
    import pyarrow.fs
    import ray

    bucket, keys = keys_of(ref)
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    files = pyarrow.fs.S3FileSystem(
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        scheme="http",
        endpoint_override=endpoint,
    )
    found = ray.data.read_webdataset([f"{bucket}/{key}" for key in keys], filesystem=files, suffixes=["jpg"])
    images = found.map(lambda row: {"image": framed(Image.fromarray(row["jpg"]), side_px)})
    return sum(len(batch["image"]) for batch in images.iter_batches(batch_size=BATCH, batch_format="numpy"))


READERS: dict[str, Callable[[ArtifactRef, int], int]] = {
    OURS: by_us,
    AGAIN: by_us,
    WEBDATASET: by_webdataset,
    RAY: by_ray,
}


def measure(name: str, ref: ArtifactRef, side_px: int) -> float:
    """Images per second of one reader, in a process of its own that has one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="b") as cache:
        os.environ["SSL_BACKDOOR_CACHE"] = cache
        if name == AGAIN:
            open_dataset(store_of(ref), ref)
        if name == RAY:
            import ray.data

            from tasks import embedded_ray

            os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # its workers unpickle what this module does
            embedded_ray.start(1, log_to_driver=False, logging_level="error")
            ray.data.DataContext.get_current().enable_progress_bars = False
        boto3.client("s3").list_buckets()
        began_s = time.perf_counter()
        done = READERS[name](ref, side_px)
        seconds = time.perf_counter() - began_s
        if name == RAY:
            embedded_ray.stop()
    return done / seconds


def by_offset(ref: ArtifactRef, options: Options) -> Mapping[str, list[float]]:
    """Images per second of a few, wherever they lie."""
    store = store_of(ref)
    samples = open_dataset(store, ref).samples
    count = min(NUM_WANTED, samples.num_rows)
    chosen = torch.randperm(samples.num_rows, generator=torch_generator(0, "bench_streaming"))[:count].numpy()
    rows = samples.take(chosen).select(["shard", "offset", "size"]).to_pylist()
    ranges = [Range(row["shard"], row["offset"], row["size"]) for row in rows]
    read_ranges, (bucket, keys), client = open_lazy_dataset(store, ref).read_ranges, keys_of(ref), boto3.client("s3")
    members = samples_of(ref)

    def rate(read: Callable[[], Any]) -> float:
        began_s = time.perf_counter()
        read()
        return count / (time.perf_counter() - began_s)

    def one_by_one() -> None:
        for one in ranges:
            key = next(key for key in keys if key.endswith(one.name))
            wanted = f"bytes={one.offset}-{one.offset + one.size - 1}"
            client.get_object(Bucket=bucket, Key=key, Range=wanted)["Body"].read()

    def all_of_them() -> None:
        for _ in members:
            pass

    readers = {
        "ours": lambda: list(read_ranges(ranges)),
        "boto3, one by one": one_by_one,
        "webdataset, all": all_of_them,
    }
    return paired({name: lambda read=read: rate(read) for name, read in readers.items()}, options.repetitions)


def run(options: Options) -> Iterator[Comparison]:
    named = importlib.import_module(
        "tests.benchmarks.bench_streaming"
    )  # not __main__, which Ray's workers cannot import
    with object_store_server() as server, tempfile.TemporaryDirectory() as folder:
        os.environ.update(server.environment)  # the processes of the readers have them too
        os.environ["SSL_BACKDOOR_CACHE"] = f"{folder}/cache"
        store = open_store(f"s3://{server.bucket}/streaming")
        for file_px, side_px, full in CASES:
            count = 200 if options.quick else full
            archive = str(Path(folder) / f"{file_px}.tar")
            write_tar(Path(archive), drawn(count, file_px))
            spec = DatasetSpec(source=FilesSourceSpec(), frame_px=side_px, samples_per_shard=max(1, count // SHARDS))
            call = StageCall(IngestStage(dataset=spec), source=source_digest(spec, archive), data=archive)
            ref = run_stage(call, store).ref
            num_mb = store.manifest(ref).summary["bytes"] / 1e6
            case = f"{count:,} JPEGs of {file_px} px ({num_mb:,.0f} MB) to {side_px} px"
            readers = {name: partial(alone, named.measure, name, ref, side_px) for name in READERS}
            yield Comparison(case, "images/s on one core", paired(readers, options.repetitions))
        yield Comparison(f"{min(NUM_WANTED, count)} of {count:,} by offset", "images/s", by_offset(ref, options))


if __name__ == "__main__":
    main(run, __doc__)
