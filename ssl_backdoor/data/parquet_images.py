"""Parquet files that hold the images themselves: Hugging Face's (image, label) and img2dataset's parquet output."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ssl_backdoor.data.items import Found, Item, claim_of, printable
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


def image_columns(path: Path) -> _Columns | None:
    """The columns of a Parquet file that holds images; None where it holds none.

    Raises:
        DataError: it cannot be read.
    """
    with _translate_errors(path):
        schema = pq.read_schema(path)
    image = next((name for name in _IMAGE if name in schema.names and _holds_bytes(schema.field(name).type)), "")
    if not image:
        return None

    def pick(*names: str) -> str:
        return next((name for name in names if name in schema.names), "")

    class_name = pick(*_CLASS)
    return _Columns(
        image,
        pick(*_CAPTION),
        class_name,
        pick(*SPLIT_FIELDS),
        pick("status"),
        pick("sha256"),
        pick("phash"),
        _class_names(schema, class_name),
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
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

    A row that img2dataset could not download is counted and left out. Memory: 64 rows with their images.

    Raises:
        DataError: a file holds no images or cannot be read; two say which split they are and another does not.
    """

    def __init__(self, files: Sequence[Path], words: SplitWords) -> None:
        self.found = Found(f"{len(files)} Parquet file{'s' * (len(files) > 1)} that hold images")
        self._files = files
        self._words = words
        around = os.path.commonpath([file.parent.absolute() for file in files])
        self._names = [os.path.relpath(file.absolute(), around).removesuffix(file.suffix) for file in files]
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
                if row.get("status") not in (None, _SUCCESS):
                    if keep is None:
                        self.found.ignore("download that failed", item.name)
                    continue
                if keep is None:
                    word = row.get("split")
                    where, said = ("table", str(word)) if word not in (None, "") else ("file", file_word)
                    if said:
                        self.found.count_split(where, said[:100], item.split)
                yield item, keep is not None and next(keep, False)

    def _item(self, name: str, row: dict[str, Any], columns: _Columns, file_split: str) -> Item:
        label = row.get("class_name")
        if isinstance(label, int) and 0 <= label < len(columns.names):
            label = columns.names[label]
        image = row.get("image")
        image = image.get("bytes") if isinstance(image, dict) else image
        captions = row.get("caption")
        texts = captions if isinstance(captions, list) else [captions]
        split = self._words.of_field(row.get("split"), f"row {name}") or file_split
        caption = "\n".join(text.replace("\n", " ") for text in texts if isinstance(text, str)) or None
        problem = "the row holds no image" if "image" in row and image is None else ""
        return Item(name, split, class_name_of(label), caption, image, problem, claim_of(row))


def _read_rows(path: Path, columns: _Columns, *, with_images: bool) -> Iterator[dict[str, Any]]:
    """Each row as a dictionary of the fields of ``_Columns``; the caption and the image where asked for."""
    wanted = {
        field: name
        for field, name in columns._asdict().items()
        if isinstance(name, str) and name and (with_images or field not in ("image", "caption", "sha256", "phash"))
    }
    with _translate_errors(path), pq.ParquetFile(path) as file:
        if not wanted:
            yield from repeat({}, file.metadata.num_rows)
            return
        rows = _BATCH_ROWS if with_images else _LISTED_ROWS
        for batch in file.iter_batches(rows, columns=list(dict.fromkeys(wanted.values()))):
            values = {field: batch.column(batch.schema.get_field_index(name)) for field, name in wanted.items()}
            for index in range(batch.num_rows):
                yield {field: column[index].as_py() for field, column in values.items()}


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Turn whatever an unreadable file raises into one sentence."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = printable(" ".join(str(error).split())[:200] or type(error).__name__)
        raise DataError(f"{path} cannot be read as a Parquet file ({reason}): fetch it or write it again") from error
