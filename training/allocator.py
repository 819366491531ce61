"""glibc's allocator told to keep what a training step frees.

A step allocates and frees the same hundreds of buffers of up to tens of megabytes. By default glibc gives large ones
back to the kernel, which clears their pages anew at the next step.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_MOST = 2**31 - 1  # of a C int: nothing is mapped apart, nothing is given back
_MOST_BEFORE_2_35 = 2**25  # older ones take no larger threshold
_GROW_BY = 2**28


def keep_freed_memory() -> bool:
    """Ask for it; the process then keeps its peak until it ends.

    Returns:
        Whether this C library takes it: glibc does, others run as they did.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    apart = mallopt(_M_MMAP_THRESHOLD, _MOST) or mallopt(_M_MMAP_THRESHOLD, _MOST_BEFORE_2_35)
    return bool(apart and mallopt(_M_TRIM_THRESHOLD, _MOST) and mallopt(_M_TOP_PAD, _GROW_BY))
