"""A parallel map on a few threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")
SMALL_BYTES = 4096
"""Of an encoded image: some 96 px as a JPEG, 40 px as a PNG."""


def num_decode_threads(bytes_each: float, most: int) -> int:
    """Number of threads for decoding images of ``bytes_each`` encoded bytes: at most ``most``, and one a CPU.

    Small images take one: most of their time is Python's (headers are parsed, objects made) under the interpreter's
    lock, and threads that take turns at it slow one another.
    """
    return 1 if bytes_each < SMALL_BYTES else min(most, os.cpu_count() or 1)


def parallel_map(
    function: Callable[[T], U], items: Iterable[T], threads: int, on_end: Callable[[], None] = lambda: None
) -> Iterator[U]:
    """``function`` of each item, in order; items are taken lazily, so that few results wait in memory.

    On an error or Ctrl-C, or when the iterator is closed, calls that have not started are cancelled and those that run
    are waited for, once ``on_end`` has had its chance to shorten them. A single thread is the caller's own.
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
        on_end()
        pool.shutdown(cancel_futures=True)
