"""Memory of processes that decode images and run a model on them: malloc settings, and batches too large for a GPU."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


# The same settings as environment variables, for child processes that compute in a thread. By the time such a thread
# could call `keep_freed_memory` it may have its own arena, to which the thresholds do not apply.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def keep_freed_memory() -> bool:
    """Makes glibc keep freed blocks, so that the next image does not fault the same pages in again.

    Images and activations exceed malloc's mmap threshold, so each would be mapped, zeroed and unmapped every time
    (120-200 thousand page faults per second, 20-30 % of the time). Uses a single arena, because actors run in a thread
    whose own arena would ignore the thresholds. Returns whether the C library accepted the settings; does nothing on
    other platforms.
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


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an error is PyTorch's for a GPU whose memory is too small: smaller batches may fit."""
    return type(error).__name__ == "OutOfMemoryError"  # by its name, as jobs without PyTorch do not import it


def release_memory() -> None:
    """Gives the memory that PyTorch keeps for later back to the GPU: pieces too small for the next batch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
