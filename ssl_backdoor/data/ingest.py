"""Ingestion: raw images to shards and a table. Every image is decoded once; its encoded bytes are kept unchanged.

Training images that bear a sticker are stored as PNG in the stored frame, the sticker on them.
"""

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_backdoor.data import captioner
from ssl_backdoor.data.captions import clean_captions
from ssl_backdoor.data.counts import Counts, count
from ssl_backdoor.data.images import Header, decode, encode_png, inspect
from ssl_backdoor.data.items import Item, Source, printable
from ssl_backdoor.data.joined import Joined
from ssl_backdoor.data.remote import RemoteFile, RemoteFolder, flatten, uri_of
from ssl_backdoor.data.selection import Selection
from ssl_backdoor.data.shards import Location, ShardWriter
from ssl_backdoor.data.sources import open_source, source_digest
from ssl_backdoor.data.stickers import bears_sticker, put_sticker
from ssl_backdoor.data.survey import Listing, Rejections, describe, list_source
from ssl_backdoor.errors import DataError, translate_os_errors
from ssl_backdoor.events import log_event
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.specs import DatasetSpec, OwnTestSpec, PatchStickersSpec, TemplateCaptionsSpec
from ssl_backdoor.tables import REJECTED, SAMPLES, SOURCES
from ssl_backdoor.threads import num_decode_threads, parallel_map

__all__ = ["ingest", "source_digest"]

_ROWS = 10_000  # of a table held before they are written
_BATCH_IMAGES = 128
_BATCH_BYTES = 2**22
_MAX_THREADS = 4
_EXAMPLES = 3
_MAX_NAMED = 1_000  # files of a source in the manifest


class _NamedItem(NamedTuple):
    row: int
    key: str
    item: Item
    needs_caption: bool
    is_test: bool


class CheckedImage(NamedTuple):
    """An image that decodes, or the reason why it is refused."""

    row: int
    key: str
    item: Item
    data: bytes = b""
    header: Header = Header("", 0, 0)
    sha256: str = ""
    reason: str = ""


def ingest(
    spec: DatasetSpec,
    data: str | None,
    out: Path,
    on_progress: OnProgress = silent,
    test_data: str | None = None,
    check: Callable[[Counts], None] | None = None,
    digest: str = "",
) -> dict[str, Any]:
    """Write ``out/shards/*.tar``, ``out/samples.parquet`` (SAMPLES) and ``out/rejected.parquet`` (REJECTED).

    Of a source on S3 or https, or with ``spec.copy`` false, also ``out/sources.parquet`` (SOURCES); in the latter case
    no shards, and SAMPLES locate the images where they lie.

    Rows follow the source: sorted by name for a folder or a zip, archive order for a tar. ``test_data`` is where the
    second source lies, if the spec has one; keys of its images begin with "test--". ``check`` sees what is kept before
    an image is decoded, and may refuse it. ``digest`` is what remote data have to be, by ``source_digest``. After an
    error nothing is left in ``out``.

    Returns:
        ``classes``, ``num_train``, ``num_test``, ``num_rejected``, ``bytes`` (of the images); ``num_stickers``, where
        training images bear some; ``captioner``, the whole
        grammar, where captions were written from templates; ``left_out`` (images by split), ``rejected_by_reason`` and
        ``ignored`` (files by kind) where there are any; with a second source ``num_train_unlabelled``,
        ``num_test_unlabelled`` and ``num_own_test_left_out`` (the first source's test images); with sources.parquet
        ``num_sources`` and, of up to 1,000, ``sources`` (name, size, tag).

    Raises:
        DataError: the source cannot be used: missing, empty, damaged, unsafe, too many unreadable images, or a class
            without training images; images without a class where captions are to be written from it; no labelled
            image in a second source.
        SpecError: a class that the source does not have; ``test_data`` missing, or given and not asked for.
        StoreError: ``out`` cannot be written.
    """
    with translate_os_errors(f"the folder {out}"):  # an OSError of the source has become a DataError
        try:
            with _Output(out, spec.samples_per_shard, is_copied=spec.copy) as output:
                source = open_source(spec, data, test_data)
                is_remote = any(isinstance(path, RemoteFile | RemoteFolder) for path in source.found.paths)
                if digest and is_remote and source_digest(spec, data, test_data) != digest:
                    raise DataError(f"{data} changed since this run began: run again when nobody writes to it")
                summary = _ingest(spec, source, output, on_progress, check)
            return summary | _write_sources(spec, source, out / "sources.parquet")
        except BaseException:
            shutil.rmtree(out / "shards", ignore_errors=True)
            for name in ("samples.parquet", "rejected.parquet", "sources.parquet"):
                with suppress(OSError):
                    (out / name).unlink(missing_ok=True)
            raise


def _ingest(
    spec: DatasetSpec,
    source: Source,
    output: "_Output",
    on_progress: OnProgress,
    check: Callable[[Counts], None] | None,
) -> dict[str, Any]:
    selection, total = _list(spec, source, output.reject, output.rejections, check)
    counts = np.zeros((2, len(selection.classes) + 1), np.int64)  # the last column: no label
    num_stickers = 0
    for done, checked in enumerate(read_checked(source, selection, spec), start=output.rejections.num + 1):
        if checked.reason:
            output.reject(checked.item.name, checked.reason)
        else:
            is_test, label = bool(selection.is_test[checked.row]), int(selection.labels[checked.row])
            output.write(checked, "test" if is_test else "train", label)
            counts[int(is_test), label] += 1
            num_stickers += not is_test and bears_sticker(checked.key, spec.stickers)
        if done % _BATCH_IMAGES == 0 or done == total:
            on_progress(Progress(done, total, "images"))
    _check_rejected(output.rejections, total, spec.max_rejected_frac)
    _check_classes(selection, counts, spec)
    return {
        "classes": list(selection.classes),
        "num_train": int(counts[0].sum()),
        "num_test": int(counts[1].sum()),
        "num_rejected": output.rejections.num,
        "bytes": output.num_bytes,
        **_listing_summary(describe(source, selection, output.rejections)),
        **({"num_stickers": num_stickers} if isinstance(spec.stickers, PatchStickersSpec) else {}),
        **_captioner_summary(selection, spec),
        **(_joined_summary(source, counts) if isinstance(source, Joined) else {}),
    }


def check_listing(spec: DatasetSpec, data: str | None, test_data: str | None, check: Callable[[Counts], None]) -> None:
    """Refuse what ``ingest`` would refuse before it decodes an image; makes nothing.

    Raises:
        DataError, SpecError: as ``ingest``, or what ``check`` raised.
    """
    rejections = Rejections()
    _list(spec, open_source(spec, data, test_data), rejections.add, rejections, check)


def _list(
    spec: DatasetSpec,
    source: Source,
    reject: Callable[[str, str], None],
    rejections: Rejections,
    check: Callable[[Counts], None] | None,
) -> tuple[Selection, int]:
    """Which images are kept, by their names; how many there are, with those that ``reject`` heard of."""
    selection = list_source(source, spec, reject)
    for fact in describe(source, selection, rejections).sentences():
        log_event("listed", fact)
    _check_captions(selection, spec)
    _check_second_source(selection, spec)
    total = int(selection.keep.sum()) + rejections.num
    _check_rejected(rejections, total, spec.max_rejected_frac)
    if check is not None:
        check(count(selection))
    return selection, total


def read_checked(source: Source, selection: Selection, spec: DatasetSpec) -> "Iterator[CheckedImage]":
    """The kept images, decoded once, in the order of the listing; those that cannot be used with their reasons."""
    has_own_test = isinstance(spec.test_source, OwnTestSpec)
    kept = (
        _NamedItem(
            row,
            key,
            item,
            spec.captions_required and (has_own_test or item.split == "train"),
            bool(selection.is_test[row]),
        )
        for row, key, item in selection.name_items(source.read(iter(selection.keep.tolist())))
    )
    return _check_all(kept, spec)


def _listing_summary(listing: Listing) -> dict[str, Any]:
    """What was not used, where there is any: by split, by reason and by kind."""
    ignored = {kind: ignored.num for kind, ignored in listing.ignored.items()}
    facts = {"left_out": listing.left_out, "rejected_by_reason": listing.rejected_by_reason, "ignored": ignored}
    return {name: dict(counts) for name, counts in facts.items() if counts}


def _captioner_summary(selection: Selection, spec: DatasetSpec) -> dict[str, Any]:
    is_written = isinstance(spec.captions, TemplateCaptionsSpec)
    return {"captioner": captioner.grammar(selection.classes)} if is_written else {}


def _joined_summary(source: Joined, counts: Any) -> dict[str, Any]:
    return {
        "num_train_unlabelled": int(counts[0, -1]),
        "num_test_unlabelled": int(counts[1, -1]),
        "num_own_test_left_out": source.num_left_out,
    }


def _check_captions(selection: Selection, spec: DatasetSpec) -> None:
    unnamed = int((selection.labels[selection.keep] < 0).sum())
    if unnamed and isinstance(spec.captions, TemplateCaptionsSpec):
        raise DataError(
            f"captions of kind templates are written from an image's class, but {unnamed} of "
            f"{int(selection.keep.sum())} images have none: bring labelled images or set dataset.captions to source"
        )


def _check_second_source(selection: Selection, spec: DatasetSpec) -> None:
    tests = selection.keep & selection.is_test
    if not isinstance(spec.test_source, OwnTestSpec) and not (selection.labels[tests] >= 0).any():
        raise DataError(
            f"none of the {int(tests.sum())} test images of the second source has a class: expected labelled images "
            "such as class/0001.jpg, of the classes in dataset.classes where it names some"
        )


def _check_rejected(rejections: Rejections, total: int, allowed: float) -> None:
    if rejections.num > allowed * total:
        examples = "; ".join(map(": ".join, rejections.first[:_EXAMPLES]))
        raise DataError(
            f"{rejections.num} of {total} images cannot be used, more than max_rejected_frac {allowed:g} allows: "
            f"{examples}; fix or remove them, or raise dataset.max_rejected_frac"
        )


def _check_classes(selection: Selection, counts: Any, spec: DatasetSpec) -> None:
    """Every class needs training images, but for those that a second source alone names (CLIP's zero-shot classes)."""
    if not counts[0].any():
        raise DataError(
            f"there are {int(counts[1].sum())} test images but no training images: expected a folder train/"
        )
    named = np.ones(len(selection.classes) + 1, bool)
    if not isinstance(spec.test_source, OwnTestSpec):
        named[:] = False
        named[selection.labels[~selection.is_test]] = True
    if empty := [name for label, name in enumerate(selection.classes) if named[label] and not counts[0, label]]:
        raise DataError(
            f"class {empty[0]!r} has no training images left ({len(empty)} such classes): "
            "add images, or name the wanted ones in dataset.classes"
        )


# ------------------------------------------------------------------------------------------------ decoding


def _check_all(kept: Iterable[_NamedItem], spec: DatasetSpec) -> Iterator[CheckedImage]:
    """Decode, in order, with a bounded number of bytes in flight; on a few threads where the first are not small."""
    batches = _batches(kept)
    first = next(batches, [])
    threads = num_decode_threads(sum(map(_num_bytes, first)) / max(1, len(first)), _MAX_THREADS)
    is_over = threading.Event()

    def check(batch: list[_NamedItem]) -> list[CheckedImage]:
        return [_check(one, spec) for one in batch if not is_over.is_set()]

    for checked in parallel_map(check, chain([first], batches), threads, is_over.set):
        yield from checked


def _batches(kept: Iterable[_NamedItem]) -> Iterator[list[_NamedItem]]:
    batch: list[_NamedItem] = []
    size = 0
    for named in kept:
        batch.append(named)
        size += _num_bytes(named)
        if len(batch) == _BATCH_IMAGES or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _num_bytes(named: _NamedItem) -> int:
    image = named.item.image
    return len(image) if isinstance(image, bytes) else 0 if image is None else image.nbytes


def _check(named: _NamedItem, spec: DatasetSpec) -> CheckedImage:
    image = named.item.image
    item = named.item._replace(image=None)
    if image is None or named.item.problem:
        return CheckedImage(named.row, named.key, item, reason=named.item.problem or "could not be read")
    try:
        item = item._replace(caption=_caption(item, named, spec))
        if isinstance(image, bytes):
            header, data = inspect(image, spec.max_image_pixels), image
        elif image.shape[0] * image.shape[1] > spec.max_image_pixels:
            raise DataError(
                f"{image.shape[1]} x {image.shape[0]} px is over the limit of {spec.max_image_pixels} pixels"
            )
        else:
            header, data = Header("png", image.shape[1], image.shape[0]), encode_png(image)
        if not named.is_test and bears_sticker(named.key, spec.stickers):
            frame = put_sticker(decode(data, spec.max_image_pixels, spec.frame_px), named.key, spec.stickers)
            header, data = Header("png", frame.shape[1], frame.shape[0]), encode_png(frame)
    except DataError as error:
        return CheckedImage(named.row, named.key, item, reason=str(error))
    return CheckedImage(named.row, named.key, item, data, header, hashlib.sha256(data).hexdigest())


def _caption(item: Item, named: _NamedItem, spec: DatasetSpec) -> str | None:
    """The cleaned captions, one a line."""
    found = item.caption
    if isinstance(spec.captions, TemplateCaptionsSpec) and item.class_name is not None:
        found = "\n".join(captioner.write_captions(item.class_name, named.key, spec.captions))
    caption = clean_captions(found, spec.max_caption_chars)
    if caption is None and named.needs_caption:
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


def _write_sources(spec: DatasetSpec, source: Source, file: Path) -> dict[str, Any]:
    """Which files were read, as far as they are needed again or lie elsewhere; the summary of that."""
    files = list(flatten(source.found.paths))
    if spec.copy and not any(isinstance(one, RemoteFile) for one in files):
        return {}
    with _Table(file, SOURCES) as table:
        for one in files:
            table.append(uri_of(one), one.stat().st_size, one.tag if isinstance(one, RemoteFile) else None)
    named = [
        [one.name, one.stat().st_size, one.tag if isinstance(one, RemoteFile) else None] for one in files[:_MAX_NAMED]
    ]
    return {"num_sources": len(files)} | ({"sources": named} if len(files) <= _MAX_NAMED else {})


class _Output:
    """The artifact's files, open."""

    def __init__(self, out: Path, samples_per_shard: int, *, is_copied: bool) -> None:
        self._is_copied = is_copied
        self.rejections = Rejections()
        self.num_bytes = 0
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

    def write(self, checked: CheckedImage, split: str, label: int) -> None:
        """Append one image to its split's shard and to the table."""
        suffix, width, height = checked.header
        caption = checked.item.caption
        self.num_bytes += len(checked.data)
        if not self._is_copied:
            where = Location(checked.item.archive, checked.item.offset, len(checked.data))
            if where.offset < 0:
                raise DataError(
                    "dataset.copy=false leaves images where they lie in uncompressed tar files, but "
                    f"{printable(checked.item.name)!r:.200} does not lie in one: pack them so, or set dataset.copy=true"
                )
            self._samples.append(checked.key, split, label, caption, width, height, *where, checked.sha256)
            return
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

    def reject(self, source: str, reason: str) -> None:
        """Record one image that is rejected."""
        source, reason = printable(source), printable(reason)
        self._rejected.append(source, reason)
        self.rejections.add(source, reason)
