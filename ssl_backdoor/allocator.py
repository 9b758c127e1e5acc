"""What the C library's allocator does with memory that tensors no longer need."""

import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's malloc.h."""
KEPT_BYTES = 2**30
SEPARATE_FROM_BYTES = 2**25
"""The most that glibc takes."""


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep up to ``KEPT_BYTES`` of freed memory, instead of handing it back and asking again.

    A step of training or inference frees its activations and asks for as many again: by glibc's own thresholds some
    4,000 page faults a step of MoCo v2 on 32 px images, each answered by the kernel with a cleared page. False where
    the C library has no such thresholds (musl, macOS, Windows); nothing is changed there.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(M_MMAP_THRESHOLD, SEPARATE_FROM_BYTES))
