"""A faster allocator setting for training on the CPU; the command line's business, never the library's."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def keep_large_blocks() -> bool:
    """Make glibc keep freed activations instead of returning them to the system at every step.

    Returning and faulting in the same pages again costs a training step 10 to 40 % on a CPU. Returns whether it was
    done: on Linux with glibc only.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 1024 * 1024))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
