"""What an ingest stage would keep, without running it: counts, and a sample of the images."""

import time
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ssl_backdoor.data.counts import Counts, count, measure
from ssl_backdoor.data.images import encode_jpeg75, encode_png
from ssl_backdoor.data.selection import select
from ssl_backdoor.data.sources import open_source
from ssl_backdoor.data.stored import open_lazy_dataset
from ssl_backdoor.errors import DataError
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import DatasetSpec
from ssl_backdoor.store import ArtifactRef, ArtifactStore

MAX_IMAGES = 256
_NUM_CLASSES = 10  # where nothing says how many
_SIDE_PX = 224


class Preview(NamedTuple):
    """The kept images in numbers, and at most ``MAX_IMAGES`` of them."""

    counts: Counts
    images: tuple[bytes, ...]
    """Encoded, as found."""
    listing_s: float = 0.0
    """To list them all."""
    reading_s: float = 0.0
    """To read one of them."""


def preview_source(spec: DatasetSpec, data: str | None, test_data: str | None = None) -> Preview:
    """List the source as an ingest does, and read the first of the images that it would keep.

    Raises:
        DataError: the source cannot be used, or nothing of it is kept.
        SpecError: a class that the data do not have; ``test_data`` missing, or given and not asked for.
    """
    source, began_s = open_source(spec, data, test_data), time.perf_counter()
    selection = select(source.listing(), spec)
    listed_s = time.perf_counter()
    first = iter(selection.keep.tolist())
    images = [
        item.image if isinstance(item.image, bytes) else encode_png(item.image)
        for item in islice(source.read(first), MAX_IMAGES)
        if item.image is not None
    ]
    if not images:
        raise DataError("none of the images would be kept: look at dataset.classes, or bring other images")
    reading_s = (time.perf_counter() - listed_s) / len(images)
    return Preview(count(selection), tuple(images), listed_s - began_s, reading_s)


def preview_artifact(store: ArtifactStore, ref: ArtifactRef) -> Preview:
    """The same for an ingested dataset, from its table and one of its shards.

    Raises:
        StoreError: the artifact cannot be read.
    """
    samples = pq.read_table(store.fetch(ref, ["samples.parquet"]) / "samples.parquet")
    counts = measure(samples, store.manifest(ref).summary["classes"]).counts
    train = samples.filter(pc.equal(samples["split"], "train"))
    shard = train.filter(pc.equal(train["shard"], train["shard"][0]))
    rows = shard.take(pa.array(np.unique(np.linspace(0, shard.num_rows - 1, MAX_IMAGES, dtype=np.int64))))
    return Preview(counts, tuple(open_lazy_dataset(store, ref).read(rows)))


def synthetic_preview(spec: DatasetSpec, num_train: int, num_test: int) -> Preview:
    """For data that do not exist yet: classes of equal size, and smooth noise in place of images."""
    classes: Sequence[str] = spec.classes or [f"class {index}" for index in range(_NUM_CLASSES)]
    side_px = spec.frame_px or spec.resident_px or _SIDE_PX
    noise = stream(0, "imagined").integers(0, 256, (MAX_IMAGES // 8, 16, 16, 3), dtype=np.uint8)
    images = [np.asarray(Image.fromarray(pixels).resize((side_px, side_px))) for pixels in noise]
    train, test = (
        tuple(number // len(classes) + (index < number % len(classes)) for index in range(len(classes)))
        for number in (num_train, num_test)
    )
    return Preview(Counts(tuple(classes), train, test, 0, 0), tuple(map(encode_jpeg75, images)))
