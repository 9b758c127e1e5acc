"""What ``S3Store`` asks of its server, counted without asking: for an estimate of the bill.

Each function follows a method of s3.py; a test holds them equal on a real server. Nothing is imported for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

PART_BYTES = 8 << 20
"""From this size on an object goes up and comes down in parts of it."""


@dataclass(frozen=True)
class Requests:
    """By how providers bill: ``writes`` are PUT, POST and LIST, ``reads`` GET and HEAD; ``deletes`` are often free."""

    writes: int = 0
    reads: int = 0
    deletes: int = 0

    def __add__(self, other: "Requests") -> "Requests":
        return Requests(self.writes + other.writes, self.reads + other.reads, self.deletes + other.deletes)

    def times(self, count: int) -> "Requests":
        """The same ``count`` times."""
        return Requests(self.writes * count, self.reads * count, self.deletes * count)


FIND = MANIFEST = Requests(reads=1)
LOAD_CHECKPOINT = Requests(writes=1)
"""Where there is none."""
CHECK = Requests(writes=2, reads=1, deletes=1)


def fetch(sizes: Iterable[int]) -> Requests:
    """Files of an artifact; of those that the cache lacks the sizes in bytes."""
    return MANIFEST + Requests(reads=sum(1 + _parts(size) for size in sizes))


def read(count: int, at_once: int) -> Requests:
    """``count`` parts of files, ``at_once`` of them asked for in one call."""
    return MANIFEST.times(-(-count // at_once)) + Requests(reads=count)


def commit(sizes: Iterable[int]) -> Requests:
    """An artifact of files of these sizes."""
    return FIND + Requests(writes=1 + sum(map(_upload, sizes)))


def checkpoints(count: int, size: int) -> Requests:
    """``count`` of one training, of ``size`` bytes each; then all are dropped, as they are where there was none."""
    saved = Requests(writes=1 + _upload(size)).times(count)
    return saved + Requests(writes=1, deletes=count)


def _upload(size: int) -> int:
    return 1 if size < PART_BYTES else 2 + _parts(size)


def _parts(size: int) -> int:
    return 1 if size < PART_BYTES else -(-size // PART_BYTES)
