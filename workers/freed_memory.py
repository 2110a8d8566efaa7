"""Gives memory that nothing uses any more back to the system. No torch here.

A rank has some 45 threads, most of them Ray's, and what one of them allocates another frees. glibc gives threads arenas
of their own, up to eight a core, and keeps what is freed in them (figures: docs/serving.md). Fewer arenas would do as
well, but how many there may be is settled before a rank's code runs, and to set it for a process to come costs one more
start of Python (docs/faults.md).
"""

import ctypes
from collections.abc import Callable


def give_freed_memory_back() -> bool:
    """Returns what the C library holds free in whole pages; whether there was any. Other threads' allocations wait.

    Only glibc keeps memory in such a way that this is needed: with another C library nothing is done.
    """
    return _trim is not None and bool(_trim(0))


def _find_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim  # type: ignore[no-any-return, unused-ignore]


_trim = _find_trim()
