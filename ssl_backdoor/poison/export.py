"""A poisoned dataset as ordinary WebDataset shards, for other tools."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.data.shards import ShardWriter, read_bytes
from ssl_backdoor.progress import OnProgress, Progress, silent

_BLOCK = 1024
_SUFFIX = {"JPEG": "jpg", "PNG": "png"}


def export(dataset: Dataset, overlay: Overlay | None, out: Path, on_progress: OnProgress = silent) -> dict[str, int]:
    """Write both splits of ``dataset`` to ``out``/train-*.tar and test-*.tar, the overlay's bytes in place.

    The order of the samples is the base's and all bytes are copied as they are. A sample has two members: the image
    and a json with label, class and caption, which says nothing of poison: that record is the overlay's table. (The
    overlay's codec may differ from the base's; ingest PNG files or poison with "jpeg75" where that matters.) Streams:
    memory does not grow with the dataset.

    Returns:
        {"num_train", "num_test", "num_replaced"}.

    Raises:
        DataError: the dataset's shards cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    counts = {"num_train": 0, "num_test": 0, "num_replaced": 0}
    for split in ("train", "test"):
        samples = dataset.samples.filter(pc.equal(dataset.samples["split"], split))
        with ShardWriter(out, split, dataset.spec.samples_per_shard) as writer:
            for batch in samples.to_batches(max_chunksize=_BLOCK):
                block = pa.Table.from_batches([batch])
                in_overlay = _overlay_rows(block["key"], overlay)
                for row, data in zip(block.to_pylist(), _bytes(dataset, overlay, block, in_overlay), strict=True):
                    writer.write(row["key"], data, _suffix(data), _meta(row, dataset.classes))
                counts[f"num_{split}"] += block.num_rows
                counts["num_replaced"] += block.num_rows - in_overlay.null_count
                on_progress(Progress(counts[f"num_{split}"], samples.num_rows, f"{split} images"))
    return counts


def _overlay_rows(keys: pa.ChunkedArray, overlay: Overlay | None) -> pa.ChunkedArray:
    """For every key the row of the overlay that replaces it, or null."""
    replaced = [] if overlay is None else overlay.rows["source_key"].combine_chunks()
    return pc.index_in(keys, value_set=pa.array(replaced, pa.string()))


def _bytes(dataset: Dataset, overlay: Overlay | None, block: pa.Table, in_overlay: pa.ChunkedArray) -> Iterator[bytes]:
    """The bytes of each row of ``block``, in order, from the base or from the overlay."""
    base = read_bytes(dataset.folder, block.filter(pc.is_null(in_overlay)))
    replacements = (
        iter(()) if overlay is None else read_bytes(overlay.folder, overlay.rows.take(in_overlay.drop_null()))
    )
    for row in in_overlay.to_pylist():
        yield next(base if row is None else replacements)


def _suffix(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return _SUFFIX.get(str(image.format), str(image.format).lower())


def _meta(row: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    name = classes[row["label"]] if row["label"] >= 0 else None
    return {"label": row["label"], "class": name, "caption": row["caption"]}
