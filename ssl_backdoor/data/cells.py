"""Cells of tables: what a Parquet file may claim to hold, and text that may be none."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssl_backdoor.data.captions import decode_text

if TYPE_CHECKING:
    from ssl_backdoor.data.remote import SourceFile

UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, LookupError, TypeError, MemoryError)
"""What reading a damaged or hostile table raises."""
_MAX_ROWS_PER_BYTE, _MAX_PARQUET_RATIO, _MAX_UNPACKED_BYTES = 8, 1_000, 2**28
"""What a Parquet table may claim to hold for its size; the last are always let through."""
_HELD_BYTES = 2**26


@contextmanager
def open_parquet(path: "SourceFile") -> Iterator[pq.ParquetFile]:
    """The Parquet file at ``path``, wherever it lies."""
    with ExitStack() as stack:
        opened = path if isinstance(path, Path) else stack.enter_context(path.open("rb"))
        yield stack.enter_context(pq.ParquetFile(opened))


def check_parquet(table: "SourceFile") -> None:
    """Refuse what claims far more than its size can hold.

    Raises:
        ValueError: it does.
    """
    size = table.stat().st_size
    with open_parquet(table) as file:
        claims = file.metadata
    groups = [claims.row_group(index) for index in range(claims.num_row_groups)]
    if claims.num_rows > _MAX_ROWS_PER_BYTE * size:
        raise ValueError(f"it claims {claims.num_rows} rows in {size} bytes")
    if (unpacked := sum(group.total_byte_size for group in groups)) > max_unpacked_bytes(table):
        raise ValueError(f"it claims to unpack to {unpacked} bytes from {size}")


def max_unpacked_bytes(table: "SourceFile") -> int:
    """What a Parquet file may unpack to."""
    return _MAX_UNPACKED_BYTES + _MAX_PARQUET_RATIO * table.stat().st_size


def rows_at_once(claims: pq.FileMetaData, columns: Collection[str], most: int) -> int:
    """How many rows of ``columns`` to read at once, up to ``most``.

    In a dictionary a chunk holds a cell once for many rows, so that each row may be as large as the chunk.
    """
    groups = (claims.row_group(index) for index in range(claims.num_row_groups))
    chunks = (group.column(index) for group in groups for index in range(group.num_columns))
    largest = max(
        (
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.physical_type == "BYTE_ARRAY" and chunk.path_in_schema.partition(".")[0] in columns
        ),
        default=0,
    )
    return max(1, min(most, _HELD_BYTES // max(1, largest)))


def as_bytes(column: Any) -> Any:
    """``column`` with its text, or lists of text, as bytes: one cell that is no UTF-8 then costs only its own row."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind):
        return column.cast(pa.binary())
    if pa.types.is_large_string(kind):
        return column.cast(pa.large_binary())
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_string(kind.value_type):
        return column.cast(pa.list_(pa.binary()))
    return column


def text_of(value: object) -> object:
    """Text from bytes and whole numbers from floats, which is how a column with gaps may hold them."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def join_captions(value: object) -> str | None:
    """The captions of a cell as found, one a line.

    Raises:
        DataError: one is no text.
    """
    cells = value if isinstance(value, list) else [value]
    texts = [decode_text(one) if isinstance(one, bytes) else one for one in cells]
    return "\n".join(one.replace("\n", " ") for one in texts if isinstance(one, str)) or None
