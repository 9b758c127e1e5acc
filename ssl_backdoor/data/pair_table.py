"""Pairs from a table: a CSV, TSV or Parquet file of image path and caption, with class and split where it has them."""

import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as text_tables
import pyarrow.parquet as pq

from ssl_backdoor.data.archives import FolderFiles, Member
from ssl_backdoor.data.items import Found, Item, printable
from ssl_backdoor.data.selection import fingerprint
from ssl_backdoor.data.splits import LABEL_FIELDS, SPLIT_FIELDS, SplitWords, class_name_of
from ssl_backdoor.errors import DataError
from ssl_backdoor.specs import FilesSourceSpec

SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
_PATH = ("filepath", "path", "image", "file", "filename")
_CAPTION = ("caption", "captions", "title", "text")
_BLOCK_BYTES = 16 * 2**20
"""Of a text table held at once; a longer row makes the table unreadable."""
_BATCH_ROWS = 10_000
_SHOWN = 20


class _Columns(NamedTuple):
    """Names in the table; "" where it has no such column."""

    path: str
    caption: str
    class_name: str
    split: str


class PairTable:
    """The images that ``table`` lists; several rows of one path are several captions of one image.

    Paths are relative to the table's folder and stay below it. An image stands where its last row does, which names its
    class and split. Memory is some ten bytes a row, and the captions of images of which more rows are to come.

    Raises:
        DataError: no such table, or one without a column of paths and one of captions.
    """

    def __init__(self, table: Path, spec: FilesSourceSpec, words: SplitWords | None = None) -> None:
        self.found = Found("table of image paths and captions")
        self._words = words
        self._word = ""  # for the split in the row read last
        self._table = table
        self._folder = str(table.absolute().parent)
        self._is_last: Sequence[bool] = ()
        with _translate_read_errors(table), table.open("rb") as file:
            head = file.read(2**16)
            self._is_parquet = head.startswith(b"PAR1")
            self._delimiter = "\t" if b"\t" in head.partition(b"\n")[0] else ","
            names = pq.read_schema(table).names if self._is_parquet else self._text_reader([]).schema.names
        self._columns = _columns(table, names, spec)

    def listing(self) -> Iterator[Item]:
        """See ``Source``."""
        marks = np.frombuffer(array("Q", (fingerprint(item.name) for item in self._rows())), np.uint64)
        _, from_the_end = np.unique(marks[::-1], return_index=True)
        is_last = np.zeros(len(marks), bool)
        is_last[len(marks) - 1 - from_the_end] = True
        self._is_last = is_last.tolist()
        if self._words is not None:
            self._words.check()
        self.found.splits.clear()
        for item, last in zip(self._rows(), self._is_last, strict=False):
            if last:
                if self._word:
                    self.found.count_split("table", self._word, item.split)
                yield item

    def read(self, keep: Iterator[bool]) -> Iterator[Item]:
        """See ``Source``; the listing comes first."""
        earlier: dict[str, list[str]] = {}
        for item, last in zip(self._rows(), self._is_last, strict=False):
            found = [item.caption] if item.caption else []
            if not last:
                earlier.setdefault(item.name, []).extend(found)
                continue
            captions = "\n".join(earlier.pop(item.name, []) + found)
            if next(keep, False):
                file = self._file(item.name)
                yield item._replace(caption=captions or None, image=file.data, problem=file.problem)

    def status(self, name: str) -> tuple[int, int]:
        """(size in bytes, time of the last change in ns) of the image ``name``; (-1, -1) where there is none."""
        try:
            status = os.stat(f"{self._folder}/{name}")
        except OSError:
            return -1, -1
        return status.st_size, status.st_mtime_ns

    def _file(self, name: str) -> Member:
        path = f"{self._folder}/{name}"
        if not os.path.isfile(path):
            return Member(name, problem="the table lists it, but there is no such file")
        return FolderFiles.read(name, path)

    # ----------------------------------------------------------------------------------------------- rows

    def _rows(self) -> Iterator[Item]:
        """Every row as an item without its image."""
        wanted = [name for name in dict.fromkeys(self._columns) if name]
        number = 0
        for batch in self._batches(wanted):
            values = {name: batch.column(name).to_pylist() for name in wanted}
            nothing = [None] * batch.num_rows
            for row in zip(*(values.get(name, nothing) for name in self._columns), strict=True):
                number += 1
                yield self._item(number, *row)

    def _batches(self, wanted: list[str]) -> Iterator[pa.RecordBatch]:
        with _translate_read_errors(self._table):
            if self._is_parquet:
                with pq.ParquetFile(self._table) as file:
                    yield from file.iter_batches(_BATCH_ROWS, columns=wanted)
            else:
                with self._text_reader(wanted) as reader:
                    for block in reader:
                        yield from (block.slice(at, _BATCH_ROWS) for at in range(0, block.num_rows, _BATCH_ROWS))

    def _text_reader(self, wanted: list[str]) -> Any:
        return text_tables.open_csv(
            self._table,
            text_tables.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            text_tables.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            text_tables.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.binary())),
        )

    def _item(self, number: int, path: object, caption: object, class_name: object, split: object) -> Item:
        path = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path
        name, problem = self._place(path)
        self._word = printable(str(_text(split) or ""))[:100]
        return Item(
            name if not problem else f"row {number}, {str(path)[:100]!r}",
            (self._words and self._words.of_field(split, f"row {number}")) or "train",
            class_name_of(class_name),
            _captions(caption),
            problem=problem,
        )

    def _place(self, path: object) -> tuple[str, str]:
        """The path below the folder, or why there is none."""
        if not isinstance(path, str) or not path.strip():
            return "", "has no path"
        parts = path.removeprefix(self._folder + "/").split("/")
        name = "/".join(part for part in parts if part not in ("", "."))
        if not parts[0] or ".." in parts or "\0" in path:
            return "", "its path leads out of the table's folder: list paths relative to the table, below its folder"
        return name, "" if name else "has no path"


def _columns(table: Path, found: list[str], spec: FilesSourceSpec) -> _Columns:
    def pick(*names: str) -> str:
        return next((name for name in names if name in found), "")

    path = pick(spec.path_column) if spec.path_column else pick(*_PATH)
    caption = pick(spec.caption_column) if spec.caption_column else pick(*_CAPTION)
    for column, what, named, guesses in (
        (path, "path", spec.path_column, _PATH),
        (caption, "caption", spec.caption_column, _CAPTION),
    ):
        if not column:
            raise DataError(
                f"{table} has no column {named or ' or '.join(guesses)} for the image's {what}: "
                f"found {printable(', '.join(found[:_SHOWN]))}; name the right one in dataset.source.{what}_column"
            )
    return _Columns(path, caption, pick(*LABEL_FIELDS), pick(*SPLIT_FIELDS))


def _text(value: object) -> object:
    """Text from bytes and whole numbers from floats, which is how a column with gaps may hold them."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _captions(value: object) -> str | None:
    """The captions of a cell as found, one a line."""
    texts = (_text(one) for one in (value if isinstance(value, list) else [value]))
    return "\n".join(one.replace("\n", " ") for one in texts if isinstance(one, str)) or None


@contextmanager
def _translate_read_errors(table: Path) -> Iterator[None]:
    """Turn whatever an unreadable table raises into one sentence."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{table} cannot be read as a CSV, TSV or Parquet table ({printable(reason)}): fix it or write it again"
        ) from error
