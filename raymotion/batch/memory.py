"""malloc settings for processes that decode pictures and run a model on them."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


# The same for a process that is yet to start. For those that compute in a thread: by the time it could call
# `keep_freed_memory` it may have an arena of its own, which would not heed it.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def keep_freed_memory() -> bool:
    """Lets glibc keep freed blocks, so that the next picture does not fault the same pages in again.

    Pictures and activations lie above malloc's mmap threshold: each would be mapped, zeroed and unmapped every time
    (120-200 thousand page faults a second, 20-30 % of the time). One arena, since actors call us from a thread of
    their own, whose arena would not heed the thresholds. Returns whether the C library took the settings; elsewhere
    nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    large = 1 << 30
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, large), (_M_TRIM_THRESHOLD, large), (_M_TOP_PAD, 64 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)
