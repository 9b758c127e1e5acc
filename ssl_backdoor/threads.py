"""One function over many items on a few threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")
SMALL_BYTES = 4096
"""Of an encoded image: some 96 px as a JPEG, 40 px as a PNG."""


def decoders(bytes_each: float, most: int) -> int:
    """Threads on which images of so many encoded bytes are best decoded, ``most`` at most and one a CPU.

    Small images take one: most of their time is Python's (headers are parsed, objects made) under the interpreter's
    lock, and threads that take turns at it slow one another.
    """
    return 1 if bytes_each < SMALL_BYTES else min(most, os.cpu_count() or 1)


def side_by_side(function: Callable[[T], U], items: Iterable[T], threads: int) -> Iterator[U]:
    """``function`` of each item, in order; items are taken as they are needed, so that few results wait in memory.

    On an error or Ctrl-C, or when nobody asks any more, those that have not begun are called off. One thread is the
    caller's own.
    """
    if threads == 1:
        yield from map(function, items)
        return
    pool, running = ThreadPoolExecutor(threads), deque[Future[U]]()
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > 2 * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
