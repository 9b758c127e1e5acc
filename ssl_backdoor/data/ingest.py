"""Raw images in, shards and a table out. Every image is decoded once; the bytes that are kept are the bytes found."""

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_backdoor.data import captioner
from ssl_backdoor.data.captions import clean_captions
from ssl_backdoor.data.images import Header, encode_png, inspect
from ssl_backdoor.data.items import Item, printable
from ssl_backdoor.data.selection import Selection, select
from ssl_backdoor.data.shards import ShardWriter
from ssl_backdoor.data.sources import open_source, source_digest
from ssl_backdoor.errors import DataError, StoreError
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.specs import DatasetSpec, TemplateCaptionsSpec
from ssl_backdoor.tables import REJECTED, SAMPLES

__all__ = ["ingest", "source_digest"]

_ROWS = 10_000  # of a table held before they are written
_BATCH_IMAGES = 128
_BATCH_BYTES = 2**22
_MAX_THREADS = 4
_EXAMPLES = 3


class _Named(NamedTuple):
    row: int
    key: str
    item: Item


class _Checked(NamedTuple):
    """An image that decodes, or the reason why it is refused."""

    row: int
    key: str
    item: Item
    data: bytes = b""
    header: Header = Header("", 0, 0)
    sha256: str = ""
    reason: str = ""


def ingest(spec: DatasetSpec, data: str | None, out: Path, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Write ``out/shards/*.tar``, ``out/samples.parquet`` (SAMPLES) and ``out/rejected.parquet`` (REJECTED).

    Rows follow the source: sorted by name for a folder or a zip, archive order for a tar. After an error nothing is
    left in ``out``.

    Returns:
        ``classes``, ``num_train``, ``num_test``, ``num_rejected``, ``bytes`` (of the images); ``captioner``, the whole
        grammar, where captions were written from templates.

    Raises:
        DataError: the source cannot be used: missing, empty, damaged, unsafe, too many unreadable images, or a class
            without training images; images without a class where captions are to be written from it.
        SpecError: a class that the source does not have.
        StoreError: ``out`` cannot be written.
    """
    try:
        with _Output(out, spec.samples_per_shard) as output:
            return _ingest(spec, data, output, on_progress)
    except BaseException as error:
        shutil.rmtree(out / "shards", ignore_errors=True)
        for name in ("samples.parquet", "rejected.parquet"):
            with suppress(OSError):
                (out / name).unlink(missing_ok=True)
        if isinstance(error, OSError):  # those of the source have become DataError
            raise StoreError(
                f"cannot write to {out} ({error.strerror or error}): free or choose another place"
            ) from error
        raise


def _ingest(spec: DatasetSpec, data: str | None, output: "_Output", on_progress: OnProgress) -> dict[str, Any]:
    source = open_source(spec, data)

    def listed() -> Iterator[Item]:
        for item in source.listing():
            if item.problem:
                output.reject(item.name, item.problem)
            yield item

    selection = select(listed(), spec)
    _check_captions(selection, spec)
    total = int(selection.keep.sum()) + output.num_rejected
    kept = (_Named(*named) for named in selection.named(source.read(iter(selection.keep.tolist()))))
    counts = np.zeros((2, len(selection.classes) + 1), np.int64)  # the last column: no label
    for done, checked in enumerate(_checked(kept, spec), start=output.num_rejected + 1):
        if checked.reason:
            output.reject(checked.item.name, checked.reason)
        else:
            is_test, label = bool(selection.is_test[checked.row]), int(selection.labels[checked.row])
            output.write(checked, "test" if is_test else "train", label)
            counts[int(is_test), label] += 1
        if done % _BATCH_IMAGES == 0 or done == total:
            on_progress(Progress(done, total, "images"))
    _check_rejected(output, total, spec.max_rejected_frac)
    _check_classes(selection, counts)
    return {
        "classes": list(selection.classes),
        "num_train": int(counts[0].sum()),
        "num_test": int(counts[1].sum()),
        "num_rejected": output.num_rejected,
        "bytes": output.num_bytes,
        **_recorded(selection, spec),
    }


def _recorded(selection: Selection, spec: DatasetSpec) -> dict[str, Any]:
    is_written = isinstance(spec.captions, TemplateCaptionsSpec)
    return {"captioner": captioner.grammar(selection.classes)} if is_written else {}


def _check_captions(selection: Selection, spec: DatasetSpec) -> None:
    unnamed = int((selection.labels[selection.keep] < 0).sum())
    if unnamed and isinstance(spec.captions, TemplateCaptionsSpec):
        raise DataError(
            f"captions of kind templates are written from an image's class, but {unnamed} of "
            f"{int(selection.keep.sum())} images have none: bring labelled images or set dataset.captions to source"
        )


def _check_rejected(output: "_Output", total: int, allowed: float) -> None:
    if output.num_rejected > allowed * total:
        raise DataError(
            f"{output.num_rejected} of {total} images cannot be used, more than max_rejected_frac {allowed:g} allows: "
            f"{'; '.join(output.examples)}; mend or remove them, or raise dataset.max_rejected_frac"
        )


def _check_classes(selection: Selection, counts: Any) -> None:
    if not counts[0].any():
        raise DataError(
            f"there are {int(counts[1].sum())} test images but no training images: expected a folder train/"
        )
    if empty := [name for name, count in zip(selection.classes, counts[0, :-1], strict=True) if not count]:
        raise DataError(
            f"class {empty[0]!r} has no training images left ({len(empty)} such classes): "
            "add images, or name the wanted ones in dataset.classes"
        )


# ------------------------------------------------------------------------------------------------ decoding


def _checked(kept: Iterable[_Named], spec: DatasetSpec) -> Iterator[_Checked]:
    """Decode on a few threads, in order, with a bounded number of bytes in flight."""
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, "decode") as pool:
        waiting: deque[Future[list[_Checked]]] = deque()
        for batch in _batches(kept):
            waiting.append(pool.submit(_check_batch, batch, spec))
            if len(waiting) > threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _batches(kept: Iterable[_Named]) -> Iterator[list[_Named]]:
    batch: list[_Named] = []
    size = 0
    for named in kept:
        batch.append(named)
        image = named.item.image
        size += len(image) if isinstance(image, bytes) else 0 if image is None else image.nbytes
        if len(batch) == _BATCH_IMAGES or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check_batch(batch: list[_Named], spec: DatasetSpec) -> list[_Checked]:
    return [_check(named, spec) for named in batch]


def _check(named: _Named, spec: DatasetSpec) -> _Checked:
    image = named.item.image
    item = named.item._replace(image=None)
    if image is None or named.item.problem:
        return _Checked(named.row, named.key, item, reason=named.item.problem or "could not be read")
    try:
        item = item._replace(caption=_caption(item, named.key, spec))
        if isinstance(image, bytes):
            header, data = inspect(image, spec.max_image_pixels), image
        else:
            header, data = Header("png", image.shape[1], image.shape[0]), encode_png(image)
    except DataError as error:
        return _Checked(named.row, named.key, item, reason=str(error))
    return _Checked(named.row, named.key, item, data, header, hashlib.sha256(data).hexdigest())


def _caption(item: Item, key: str, spec: DatasetSpec) -> str | None:
    """The cleaned captions, one a line."""
    found = item.caption
    if isinstance(spec.captions, TemplateCaptionsSpec) and item.class_name is not None:
        found = "\n".join(captioner.write_captions(item.class_name, key, spec.captions))
    caption = clean_captions(found, spec.max_caption_chars)
    if caption is None and spec.captions_required:
        raise DataError("has no caption left after cleaning" if found else "has no caption")
    return caption


# ------------------------------------------------------------------------------------------------ writing


class _Table:
    """A Parquet file written in groups of rows."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema)
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []

    def append(self, *values: Any) -> None:
        self._rows.append(values)
        if len(self._rows) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = list(zip(*self._rows, strict=True))
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(pa.table(arrays, schema=self._schema))
        self._rows.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._rows and error is None:
                self._flush()
        finally:
            self._writer.close()


class _Output:
    """The artifact's files, open."""

    def __init__(self, out: Path, samples_per_shard: int) -> None:
        self.num_rejected = 0
        self.num_bytes = 0
        self.examples: list[str] = []
        self._stack = ExitStack()
        out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._samples = stack.enter_context(_Table(out / "samples.parquet", SAMPLES))
            self._rejected = stack.enter_context(_Table(out / "rejected.parquet", REJECTED))
            self._shards = {
                split: stack.enter_context(ShardWriter(out, f"shards/{split}", samples_per_shard))
                for split in ("train", "test")
            }
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def write(self, checked: _Checked, split: str, label: int) -> None:
        """Append one image to its split's shard and to the table."""
        suffix, width, height = checked.header
        caption = checked.item.caption
        meta = {
            "label": label,
            "caption": caption,
            "split": split,
            "width": width,
            "height": height,
            "sha256": checked.sha256,
        }
        where = self._shards[split].write(checked.key, checked.data, suffix, meta)
        self._samples.append(checked.key, split, label, caption, width, height, *where, checked.sha256)
        self.num_bytes += len(checked.data)

    def reject(self, source: str, reason: str) -> None:
        """Note one image that is refused."""
        source, reason = printable(source), printable(reason)
        self._rejected.append(source, reason)
        self.num_rejected += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{source}: {reason}")
