"""Parquet files that hold the images themselves: Hugging Face's (image, label) and img2dataset's parquet output."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.data.archives import MAX_MEMBER_BYTES
from ssl_backdoor.data.cells import (
    UNREADABLE,
    as_bytes,
    check_parquet,
    join_captions,
    max_unpacked_bytes,
    open_parquet,
    rows_at_once,
    text_of,
)
from ssl_backdoor.data.items import Found, Item, claim_of, printable
from ssl_backdoor.data.remote import SourceFile, relative_names
from ssl_backdoor.data.splits import LABEL_FIELDS, SPLIT_FIELDS, SplitWords, class_name_of, split_of_shards
from ssl_backdoor.errors import DataError

_IMAGE = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
_CAPTION = ("caption", "captions", "title", "text")
_CLASS = (*LABEL_FIELDS, "fine_label", "labels")
_BATCH_ROWS = 64  # with their images
_LISTED_ROWS = 10_000
_SUCCESS = "success"


class _Columns(NamedTuple):
    """Names in the file; "" where it has no such column."""

    image: str
    caption: str
    class_name: str
    split: str
    status: str
    sha256: str
    phash: str
    names: tuple[str, ...]
    """Of the classes, where labels are their numbers."""


def image_columns(path: SourceFile) -> _Columns | None:
    """The columns of a Parquet file that holds images; None where it holds none.

    Raises:
        DataError: it cannot be read, claims far more than it can hold, or has two columns of one name.
    """
    with _translate_errors(path):
        check_parquet(path)
        with open_parquet(path) as file:
            schema = file.schema_arrow
    image = next((name for name in _IMAGE if name in schema.names and _holds_bytes(schema.field(name).type)), "")
    if not image:
        return None

    def pick(*names: str) -> str:
        return next((name for name in names if name in schema.names), "")

    picked = image, pick(*_CAPTION), pick(*_CLASS), pick(*SPLIT_FIELDS), pick("status"), pick("sha256"), pick("phash")
    if twice := [name for name in picked if schema.names.count(name) > 1]:
        raise DataError(f"{path} has several columns called {twice[0]}: rename or remove all but one")
    return _Columns(*picked, _class_names(schema, picked[2]))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The names of a Hugging Face ClassLabel, which stand in the metadata."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(map(str, features[column]["names"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


class ParquetImages:
    """The rows of ``files``, in their order. The split is the row's own, else what the file's name or folder says.

    A row that img2dataset could not download is counted and left out. A row whose caption is no text, or whose image
    has more than ``MAX_MEMBER_BYTES``, is refused. Memory: 64 rows with their images, fewer where they may be large.

    Raises:
        DataError: a file holds no images or cannot be read; two say which split they are and another does not.
    """

    def __init__(self, files: Sequence[SourceFile], words: SplitWords) -> None:
        self.found = Found(f"{len(files)} Parquet file{'s' * (len(files) > 1)} that hold images")
        self._files = files
        self._words = words
        self._names = [name.removesuffix(file.suffix) for name, file in zip(relative_names(files), files, strict=True)]
        self._splits = split_of_shards(self._names, words)

    def listing(self) -> Iterator[Item]:
        """See ``Source``."""
        self.found.clear()
        for item, _ in self._rows(None):
            if item is not None:
                yield item
        self._words.check()

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """See ``Source``."""
        return (item for item, is_wanted in self._rows(keep) if item is not None and is_wanted)

    def _rows(self, keep: Iterator[bool] | None) -> Iterator[tuple[Item | None, bool]]:
        for path, name, (file_split, file_word) in zip(self._files, self._names, self._splits, strict=True):
            columns = image_columns(path)
            if columns is None:
                raise DataError(f"{path} holds no images, but lies beside Parquet files that do: move it away")
            number = 0
            for row in _read_rows(path, columns, with_images=keep is not None):
                item = self._item(f"{name}/{number:07d}", row, columns, file_split)
                number += 1
                if text_of(row.get("status")) not in (None, _SUCCESS):
                    if keep is None:
                        self.found.ignore("download that failed", item.name)
                    continue
                if keep is None:
                    word = text_of(row.get("split"))
                    where, said = ("table", printable(str(word))) if word not in (None, "") else ("file", file_word)
                    if said:
                        self.found.count_split(where, said[:100], item.split)
                yield item, keep is not None and next(keep, False)

    def _item(self, name: str, row: dict[str, Any], columns: _Columns, file_split: str) -> Item:
        label = row.get("class_name")
        if isinstance(label, int) and 0 <= label < len(columns.names):
            label = columns.names[label]
        image, caption = row.get("image"), None
        problem = "the row holds no image" if "image" in row and image is None else ""
        if image is not None and len(image) > MAX_MEMBER_BYTES:
            image, problem = None, f"is over the limit of {MAX_MEMBER_BYTES} bytes a file"
        try:
            caption = join_captions(row.get("caption"))
        except DataError as error:
            problem = problem or f"its caption {error}"
        split = self._words.of_field(row.get("split"), f"row {name}") or file_split
        claim = claim_of({field: text_of(row.get(field)) for field in ("sha256", "phash")})
        return Item(name, split, class_name_of(label), caption, image, problem, claim)


def _read_rows(path: SourceFile, columns: _Columns, *, with_images: bool) -> Iterator[dict[str, Any]]:
    """Each row as a dictionary of the fields of ``_Columns``, text as bytes; the caption and image where asked for."""
    wanted = {
        field: name
        for field, name in columns._asdict().items()
        if isinstance(name, str) and name and (with_images or field not in ("image", "caption", "sha256", "phash"))
    }
    with _translate_errors(path), open_parquet(path) as file:
        if not wanted:
            yield from repeat({}, file.metadata.num_rows)
            return
        names = list(dict.fromkeys(wanted.values()))
        rows = rows_at_once(file.metadata, names, _BATCH_ROWS if with_images else _LISTED_ROWS)
        left = max_unpacked_bytes(path)
        for batch in file.iter_batches(rows, columns=names, use_threads=False):
            values = {field: _column(batch, name) for field, name in wanted.items()}
            for index in range(batch.num_rows):
                row = {field: column[index].as_py() for field, column in values.items()}
                left -= sum(len(cell) for cell in row.values() if isinstance(cell, bytes))
                if left < 0:
                    raise ValueError("its cells unpack to far more than its size")
                yield row


def _column(batch: pa.RecordBatch, name: str) -> Any:
    column = batch.column(name)
    return as_bytes(pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column)


@contextmanager
def _translate_errors(path: SourceFile) -> Iterator[None]:
    """Turn whatever an unreadable file raises into one sentence."""
    try:
        yield
    except UNREADABLE as error:
        reason = printable(" ".join(str(error).split())[:200] or type(error).__name__)
        raise DataError(f"{path} cannot be read as a Parquet file ({reason}): fetch it or write it again") from error
