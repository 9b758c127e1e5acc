"""What is asked of a server that holds files of a source, and what it answers."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Listed(NamedTuple):
    """A file that is there."""

    address: str
    size: int
    tag: str
    """Other data have another: the ETag, else the time of change."""


class ListedFolder(NamedTuple):
    """What lies below an address, by relative name, in the order of a local folder."""

    address: str
    files: tuple[tuple[str, Listed], ...]


class Answer(NamedTuple):
    """Some bytes of a file, and which file they are of."""

    data: bytes
    size: int
    """Of the whole file, in bytes."""
    tag: str


class Transport(Protocol):
    """How files of one scheme are found and read.

    Both methods raise DataError, SourceAwayError where the same may succeed later.
    """

    def find(self, addresses: Sequence[str]) -> list[Listed | ListedFolder]:
        """What lies at each address; a single one may be a folder."""
        ...

    def read(self, address: str, offset: int, size: int) -> Answer:
        """``size`` bytes from ``offset`` on, fewer at the end of the file."""
        ...
