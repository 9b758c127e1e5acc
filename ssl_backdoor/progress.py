"""How long work tells how far it is, without knowing who listens."""

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
    """The listener that is not there."""
