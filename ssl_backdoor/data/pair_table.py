"""Pairs from a table: a CSV, TSV or Parquet file of image path and caption, with class and split where it has them.

Whether quotes in a text table hold cells together or are part of the captions (CC3M's TSV has them so) is found out
before anything is read. They hold cells together where every cell that begins with one ends with one, inner ones
doubled. Else they are text, provided that each line has one cell a column. Where both readings would do and differ in
rows, or neither does, the table is refused.
"""

import io
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as text_tables
import pyarrow.parquet as pq

from ssl_backdoor.data.archives import FolderFiles, Member
from ssl_backdoor.data.cells import UNREADABLE, as_bytes, check_parquet, join_captions, text_of
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
_MAX_PATH = 4096
_HEAD_BYTES = 2**16
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_CLOSING = re.compile(rb'[^"]*(?:""[^"]*)*"(?!")')


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
        self._has_quotes = False
        with _translate_read_errors(table), table.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            self._is_parquet = head.startswith(b"PAR1")
            self._encoding = "utf-16" if head.startswith(_UTF16) else "utf-8"
            first_line = head.decode(self._encoding, "replace").partition("\n")[0]
            self._delimiter = "\t" if "\t" in first_line else ","
            if self._is_parquet:
                check_parquet(table)
                names = pq.read_schema(table).names
            elif len(first_line) * (2 if self._encoding == "utf-16" else 1) >= _HEAD_BYTES - 4:
                raise ValueError(f"its first line has {_HEAD_BYTES} bytes or more")
            else:
                self._has_quotes = self._find_quotes()
                names = self._text_reader([]).schema.names
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
        for values in self._batches(wanted):
            nothing = [None] * len(values[wanted[0]])
            for row in zip(*(values.get(name, nothing) for name in self._columns), strict=True):
                number += 1
                yield self._item(number, *row)

    def _batches(self, wanted: list[str]) -> Iterator[dict[str, list[object]]]:
        """The values of the columns ``wanted``, some rows at a time; text as bytes."""
        with _translate_read_errors(self._table), ExitStack() as stack:
            if self._is_parquet:
                batches = stack.enter_context(pq.ParquetFile(self._table)).iter_batches(_BATCH_ROWS, columns=wanted)
            else:
                blocks = stack.enter_context(self._text_reader(wanted))
                batches = (
                    block.slice(at, _BATCH_ROWS) for block in blocks for at in range(0, block.num_rows, _BATCH_ROWS)
                )
            for batch in batches:
                yield {name: as_bytes(batch.column(name)).to_pylist() for name in wanted}

    def _text_reader(self, wanted: list[str]) -> Any:
        return text_tables.open_csv(
            self._table,
            text_tables.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, encoding=self._encoding),
            text_tables.ParseOptions(
                delimiter=self._delimiter,
                quote_char='"' if self._has_quotes else False,
                newlines_in_values=self._has_quotes,
            ),
            text_tables.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.binary())),
        )

    def _find_quotes(self) -> bool:
        """Whether quotes hold cells together; see the module.

        Raises:
            DataError: both readings or none would do.
        """
        delimiter = self._delimiter.encode()
        opens_in, stray_in, odd_line, has_long_cell = 0, 0, 0, False
        num_cells, is_open, has_quoted = 0, False, False
        for number, line in enumerate(self._lines(), 1):
            num_cells = num_cells or line.count(delimiter) + 1
            if line.strip() and line.count(delimiter) + 1 != num_cells:
                odd_line = odd_line or number
            if stray_in or not (is_open or b'"' in line):
                continue
            was_open, (is_open, is_stray, found) = is_open, _scan_quotes(line, delimiter, is_open)
            opens_in = number if is_open and not was_open else opens_in
            has_quoted, has_long_cell = has_quoted or found, has_long_cell or is_open
            stray_in = number if is_stray else 0
        if is_open:
            stray_in = stray_in or opens_in
        if not has_quoted or (stray_in and not odd_line):
            return False
        if stray_in:
            raise DataError(
                f"{self._table} has a quote in line {stray_in} that neither holds a whole cell together nor can be "
                f"text, as line {odd_line} has not {num_cells} cells: double the quotes inside cells, or write Parquet"
            )
        if has_long_cell and not odd_line:
            raise DataError(
                f"{self._table} can be read in two ways: the quote that line {opens_in} opens holds several lines "
                "together, or it is text and each line is a row: remove the quote, or write Parquet"
            )
        return True

    def _lines(self) -> Iterator[bytes]:
        """The lines of a text table as UTF-8, with their ends; of a table without quotes only the first."""
        with self._table.open("rb") as file:
            if self._encoding == "utf-16":
                with io.TextIOWrapper(file, "utf-16", newline="") as text:
                    yield from (
                        line.encode("utf-8", "replace") for line in iter(lambda: text.readline(_BLOCK_BYTES), "")
                    )
                return
            if any(b'"' in block for block in iter(lambda: file.read(2**20), b"")):
                file.seek(3 if self._has_mark(file) else 0)
                yield from iter(lambda: file.readline(_BLOCK_BYTES), b"")

    @staticmethod
    def _has_mark(file: BinaryIO) -> bool:
        file.seek(0)
        return file.read(3) == b"\xef\xbb\xbf"

    def _item(self, number: int, path: object, caption: object, class_name: object, split: object) -> Item:
        path = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path
        name, problem = self._place(path)
        self._word = printable(str(text_of(split) or ""))[:100]
        found = None
        try:
            found = join_captions(caption)
        except DataError as error:
            problem = problem or f"its caption {error}"
        return Item(
            name if not problem else f"row {number}, {str(path)[:100]!r}",
            (self._words and self._words.of_field(split, f"row {number}")) or "train",
            class_name_of(class_name),
            found,
            problem=problem,
        )

    def _place(self, path: object) -> tuple[str, str]:
        """The path below the folder, or why there is none."""
        if not isinstance(path, str) or not path.strip():
            return "", "has no path"
        if len(path) > _MAX_PATH:
            return "", f"its path has {len(path)} characters, more than the {_MAX_PATH} of any file"
        parts = path.removeprefix(self._folder + "/").split("/")
        name = "/".join(part for part in parts if part not in ("", "."))
        if not parts[0] or ".." in parts or "\0" in path:
            return "", "its path leads out of the table's folder: list paths relative to the table, below its folder"
        return name, "" if name else "has no path"


def _scan_quotes(line: bytes, delimiter: bytes, is_open: bool) -> tuple[bool, bool, bool]:
    """Whether a quoted cell is open after ``line``, whether one ended amid a cell, and whether there was any."""
    at, has_quoted = 0, is_open
    while True:
        if is_open:
            if (closing := _CLOSING.match(line, at)) is None:
                return True, False, True
            is_open, at = False, closing.end()
            if not line[at:].strip(b"\r\n"):
                return False, False, True
            if line[at : at + 1] != delimiter:
                return False, True, True
            at += 1
        elif line[at : at + 1] == b'"':
            is_open, has_quoted, at = True, True, at + 1
        elif (end := line.find(delimiter, at)) >= 0:
            at = end + 1
        else:
            return False, False, has_quoted


def _columns(table: Path, found: list[str], spec: FilesSourceSpec) -> _Columns:
    def pick(*names: str) -> str:
        return next((name for name in names if name in found), "")

    path = pick(spec.path_column) if spec.path_column else pick(*_PATH)
    caption = pick(spec.caption_column) if spec.caption_column else pick(*_CAPTION)
    class_name, split = pick(*LABEL_FIELDS), pick(*SPLIT_FIELDS)
    if twice := [name for name in (path, caption, class_name, split) if name and found.count(name) > 1]:
        raise DataError(f"{table} has {found.count(twice[0])} columns called {twice[0]}: rename or remove all but one")
    for column, what, named, guesses in (
        (path, "path", spec.path_column, _PATH),
        (caption, "caption", spec.caption_column, _CAPTION),
    ):
        if not column:
            raise DataError(
                f"{table} has no column {named or ' or '.join(guesses)} for the image's {what}: "
                f"found {printable(', '.join(found[:_SHOWN]))}; name the right one in dataset.source.{what}_column"
            )
    return _Columns(path, caption, class_name, split)


@contextmanager
def _translate_read_errors(table: Path) -> Iterator[None]:
    """Turn whatever an unreadable table raises into one sentence."""
    try:
        yield
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{table} cannot be read as a CSV, TSV or Parquet table ({printable(reason)}): fix it or write it again"
        ) from error
