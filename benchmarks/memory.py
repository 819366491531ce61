"""Peak resident memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def reset_peak_rss() -> bool:
    """Begin a new peak at what is resident now, where the system can (Linux); say whether it did."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def peak_rss_bytes() -> tuple[int, str]:
    """The greatest resident set of this process since it began (or since `reset_peak_rss`), and how it was read.

    Not `ru_maxrss` on Linux: a child process begins there with its parent's peak.
    """
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024, "VmHWM of /proc/self/status"
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset), "peak working set"
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return peak * unit, "ru_maxrss of getrusage"
