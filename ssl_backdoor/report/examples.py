"""Poisoned images beside their originals, read from a dataset and its overlay."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.data.dataset import Dataset, LazyDataset, Overlay, lookup_locations
from ssl_backdoor.data.images import decode
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.report.cells import Example


def read_examples(dataset: Dataset | LazyDataset, overlay: Overlay, attack: str, count: int) -> Iterator[Example]:
    """The first ``count`` poisoned images in the stored frame, one at a time; added pairs with their captions.

    Raises:
        DataError: a shard is damaged, or an image does not decode.
    """
    rows = overlay.rows.filter(pc.is_in(overlay.rows["action"], pa.array(["poison", "add"]))).slice(0, count)
    originals = lookup_locations(dataset.samples, rows["source_key"])
    limit, frame_px = dataset.spec.max_image_pixels, dataset.spec.frame_px
    for original, poisoned, row in zip(
        dataset.read(originals), read_bytes(overlay.folder, rows), rows.to_pylist(), strict=True
    ):
        yield Example(
            original=decode(original, limit, frame_px),
            poisoned=decode(poisoned, limit),
            box=None if row["box_x"] is None else (row["box_x"], row["box_y"], row["box_width"], row["box_height"]),
            caption=row["source_key"],
            text=(row["caption"] or "") if row["action"] == "add" else "",
            attack=attack,
        )
