"""One function over many items on a few threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def side_by_side(function: Callable[[T], U], items: Iterable[T], threads: int) -> Iterator[U]:
    """``function`` of each item, in order; items are taken as they are needed, so that few results wait in memory.

    On an error or Ctrl-C, or when nobody asks any more, those that have not begun are called off.
    """
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
