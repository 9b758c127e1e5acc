"""What the C library's allocator does with memory that tensors no longer need."""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's malloc.h."""
KEPT_BYTES = 2**30
SEPARATE_FROM_BYTES = 2**25
"""The most that glibc takes."""


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Inside, this process keeps up to ``KEPT_BYTES`` of freed memory, instead of handing it back and asking again.

    A step of training or inference frees its activations and asks for as many again: by glibc's own thresholds some
    4,000 page faults a step of MoCo v2 on 32 px images, each answered by the kernel with a cleared page. On leaving,
    all that is free is handed back; the thresholds stay. Where the C library has none (musl, macOS, Windows) nothing is
    changed.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    libc.mallopt(M_MMAP_THRESHOLD, SEPARATE_FROM_BYTES)
    try:
        yield
    finally:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
