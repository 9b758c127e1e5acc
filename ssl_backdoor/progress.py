"""Progress of long work, reported to a callback."""

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """``done`` of ``total`` ``unit``s; ``note`` is a short current value such as a loss."""

    done: int
    total: int
    unit: str
    note: str = ""


OnProgress = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """No-op progress callback."""
