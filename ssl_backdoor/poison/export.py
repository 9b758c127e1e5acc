"""A poisoned dataset as ordinary WebDataset shards, for other tools."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.data.rows import rows_of
from ssl_backdoor.data.shards import ShardWriter, read_bytes
from ssl_backdoor.progress import OnProgress, Progress, silent

_BLOCK = 1024
_SUFFIX = {"JPEG": "jpg", "PNG": "png"}


def export(dataset: Dataset, overlay: Overlay | None, out: Path, on_progress: OnProgress = silent) -> dict[str, int]:
    """Write both splits of ``dataset`` to ``out``/train-*.tar and test-*.tar, the overlay's bytes in place.

    The order of the samples is the base's, pairs that the overlay adds follow in the train shards, and all bytes are
    copied as they are. A sample has the image, a json with label, class and caption, and a txt where it has a caption
    (several are one a line). The json says nothing of poison: that record is the overlay's table, and the keys of
    added pairs. (The overlay's codec may differ from the base's; ingest PNG files or poison with "jpeg75" where that
    matters.) Streams: memory does not grow with the dataset. After an error a folder that was made here is removed.

    Returns:
        {"num_train", "num_test", "num_replaced", "num_added"}; num_train counts the added.

    Raises:
        DataError: the dataset's shards cannot be read.
    """
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _export(dataset, overlay, out, on_progress)
    except BaseException:
        if is_new:
            shutil.rmtree(out, ignore_errors=True)
        raise


def _export(dataset: Dataset, overlay: Overlay | None, out: Path, on_progress: OnProgress) -> dict[str, int]:
    counts = {"num_train": 0, "num_test": 0, "num_replaced": 0, "num_added": 0}
    for split in pc.unique(dataset.samples["split"]).to_pylist():
        rows = rows_of(dataset, split, overlay)
        with ShardWriter(out, split, dataset.spec.samples_per_shard) as writer:
            for done, (row, data) in enumerate(_read(dataset, overlay, rows), start=1):
                writer.write(row["key"], data, _suffix(data), _meta(row, dataset.classes), row["caption"])
                if done % _BLOCK == 0 or done == rows.num_rows:
                    on_progress(Progress(done, rows.num_rows, f"{split} images"))
        counts[f"num_{split}"] = rows.num_rows
        counts["num_replaced"] += pc.sum(rows["in_overlay"]).as_py()
    if overlay is not None and counts["num_train"]:
        counts["num_added"] = pc.sum(pc.equal(overlay.rows["action"], "add")).as_py() or 0
    return counts | {"num_replaced": counts["num_replaced"] - counts["num_added"]}


def _read(dataset: Dataset, overlay: Overlay | None, rows: pa.Table) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each of ``rows`` (of ``rows_of``) and its bytes, in order, from the base or from the overlay."""
    for batch in rows.to_batches(max_chunksize=_BLOCK):
        block = pa.Table.from_batches([batch])
        base = dataset.read(block.filter(pc.invert(block["in_overlay"])))
        own = iter(()) if overlay is None else read_bytes(overlay.folder, block.filter(block["in_overlay"]))
        for row in block.to_pylist():
            yield row, next(own if row["in_overlay"] else base)


def _suffix(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return _SUFFIX.get(str(image.format), str(image.format).lower())


def _meta(row: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    name = classes[row["label"]] if row["label"] >= 0 else None
    return {"label": row["label"], "class": name, "caption": row["caption"]}
