"""Small ingested datasets, made of real shards with random images."""

import functools
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from ssl_backdoor.data.dataset import Dataset
from ssl_backdoor.data.images import encode_jpeg75, encode_png
from ssl_backdoor.data.shards import ShardWriter
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import DatasetSpec
from ssl_backdoor.tables import SAMPLES

CLASSES = ("bird", "cat", "dog")


def tiny_dataset(
    folder: Path,
    *,
    classes: tuple[str, ...] = CLASSES,
    train_per_class: int = 6,
    test_per_class: int = 4,
    size: tuple[int, int] = (24, 32),
    jpeg: bool = False,
    separable: bool = False,
    spec: DatasetSpec | None = None,
) -> Dataset:
    """``size`` is (height, width) in px; with ``separable`` each class has its own mean colour."""
    spec = spec or DatasetSpec(samples_per_shard=5)
    rows = []
    for split, per_class in (("train", train_per_class), ("test", test_per_class)):
        with ShardWriter(folder, f"shards/{split}", spec.samples_per_shard) as writer:
            for index in range(per_class * len(classes)):
                label = index % len(classes)
                key = f"{split}-{classes[label]}-{index:05d}"
                image = stream(0, "tiny", key).integers(0, 256, (*size, 3), dtype=np.uint8)
                if separable:
                    image = (image // 4 + 190 * (np.arange(3) == label % 3)).astype(np.uint8)
                data = encode_jpeg75(image) if jpeg else encode_png(image)
                place = writer.write(key, data, "jpg" if jpeg else "png", {"label": label})
                digest = hashlib.sha256(data).hexdigest()
                rows.append((key, split, label, f"a {classes[label]}", size[1], size[0], *place, digest))
    columns = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), SAMPLES.types, strict=True)]
    return Dataset(folder, pa.table(columns, schema=SAMPLES), classes, spec)


@functools.cache
def _mask_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tiny-masks-")


def tiny_masks() -> str:
    """A folder with a mask of half of the cats of ``tiny_dataset``: a disc above the middle of 24 x 32 px."""
    folder = Path(_mask_folder().name)
    rows, columns = np.arange(24)[:, None], np.arange(32)[None, :]
    mask = np.where((rows - 9) ** 2 + (columns - 14) ** 2 <= 49, 255, 0).astype(np.uint8)
    for index in range(0, 60, 2):
        (folder / f"train-cat-{index:05d}.png").write_bytes(encode_png(np.repeat(mask[..., None], 3, axis=2)))
    return str(folder)
