"""The samples of a split under an overlay: their order, captions and the locations of their bytes."""

from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.data.dataset import Dataset, Overlay
from ssl_backdoor.data.shards import read_bytes
from ssl_backdoor.errors import DataError


class Encoded(NamedTuple):
    """An image's bytes and the row of the tensor they go to; an empty ``sha256`` is not checked."""

    row: int
    key: str
    data: bytes
    sha256: str


def rows_of(dataset: Dataset, split: str, overlay: Overlay | None = None) -> pa.Table:
    """Every sample of ``split`` under ``overlay`` and the location of its bytes, in training order.

    First the rows of the samples table, in its order and under its keys and labels whether replaced or not (so that
    shuffling cannot reveal which came from the overlay); then, in the split "train", the pairs that the overlay adds.

    Returns:
        Columns key, label, caption, shard, offset, size, sha256 (null where the bytes are the base's, unless they are
        indexed in place) and in_overlay: whether the shard lies in the overlay's folder.

    Raises:
        DataError: no image in the split, or the overlay belongs to another dataset.
    """
    return _rows(dataset, split, overlay, ["key", "label", "caption", "shard", "offset", "size"])


def captions_of(dataset: Dataset, split: str, overlay: Overlay | None = None) -> pa.ChunkedArray:
    """The caption of every row of ``rows_of``, without a pixel: strings (N,), null where there is none.

    Several captions of one image are joined by line breaks. A pair that the overlay adds has its own.

    Raises:
        DataError: as ``rows_of``.
    """
    return _rows(dataset, split, overlay, ["key", "caption"])["caption"]


def encoded_rows(dataset: Dataset, overlay: Overlay | None, rows: pa.Table) -> Iterator[Encoded]:
    """The bytes of each of ``rows`` (of ``rows_of``) once: first those of the base, in order, then the overlay's.

    Raises:
        DataError: a shard is missing or truncated.
    """
    in_overlay = rows["in_overlay"].to_numpy()
    base, own = (rows.filter(pa.array(mask)) for mask in (~in_overlay, in_overlay))
    places = np.flatnonzero(~in_overlay).tolist()
    yield from map(Encoded, places, base["key"].to_pylist(), dataset.read(base), repeat(""))
    if overlay is not None:
        places, keys, digests = np.flatnonzero(in_overlay).tolist(), own["key"].to_pylist(), own["sha256"].to_pylist()
        yield from map(Encoded, places, keys, read_bytes(overlay.folder, own), digests)


def _rows(dataset: Dataset, split: str, overlay: Overlay | None, columns: list[str]) -> pa.Table:
    """``columns`` (key among them) of ``rows_of``, and sha256 and in_overlay."""
    columns = columns if dataset.places is None else [*columns, "sha256"]
    rows = dataset.samples.select(columns).filter(pc.equal(dataset.samples["split"], split))
    if not rows.num_rows:
        raise DataError(f"the dataset has no {split!r} images, but they are needed here: ingest a source that has some")
    if dataset.places is None:  # the store has checked the shards
        rows = rows.append_column("sha256", pa.nulls(rows.num_rows, pa.string()))
    rows = _with_in_overlay(rows, in_overlay=False)
    if overlay is None:
        return rows
    sources = overlay.rows["source_key"].combine_chunks()
    if unknown_sources := sources.filter(
        pc.invert(pc.is_in(sources, value_set=dataset.samples["key"].combine_chunks()))
    ):
        raise DataError(
            f"the overlay is made from {len(unknown_sources)} images that the dataset lacks, such as "
            f"{unknown_sources[0].as_py()!r}: it was made for another dataset; poison this one again"
        )
    is_added = pc.equal(overlay.rows["action"], "add")
    rows = _replace_rows(rows, overlay.rows.filter(pc.invert(is_added)))
    if split != "train":
        return rows
    added = overlay.rows.filter(is_added).select(rows.column_names[:-1])
    return pa.concat_tables([rows, _with_in_overlay(added, in_overlay=True)])


def _with_in_overlay(rows: pa.Table, *, in_overlay: bool) -> pa.Table:
    return rows.append_column("in_overlay", pa.chunked_array([pa.repeat(in_overlay, rows.num_rows)], pa.bool_()))


def _replace_rows(rows: pa.Table, replacements: pa.Table) -> pa.Table:
    """``rows`` with the bytes (and captions) of ``replacements`` (OVERLAY) for their sources; key and label stay."""
    by_source = pc.index_in(rows["key"], value_set=replacements["source_key"].combine_chunks()).combine_chunks()
    here, own = by_source.is_valid(), replacements.take(by_source.drop_null())
    if not own.num_rows:
        return rows
    captions = pc.coalesce(own["caption"], rows["caption"].filter(here))
    own = _with_in_overlay(own, in_overlay=True).set_column(own.column_names.index("caption"), "caption", captions)
    for index, name in enumerate(rows.column_names):
        if name not in ("key", "label"):
            values = pc.replace_with_mask(rows[name], here, own[name].combine_chunks())
            rows = rows.set_column(index, name, values)
    return rows
