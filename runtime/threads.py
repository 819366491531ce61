"""How many cores there are to use, and how numpy's matrix products share them with threads of ours."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from threadpoolctl import ThreadpoolController

CONTAINER_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time per period, and the period: "150000 100000", or "max 100000"."""

_held = threading.Lock()


def usable_cores() -> int:
    """Logical processors this process may use: affinity and a container's quota applied; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, _, period = CONTAINER_QUOTA.read_text().strip().partition(" ")
    except OSError:
        return cores
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep numpy's matrix products on the calling thread, for work that is spread over threads of ours.

    BLAS threads on top of those make small products many times slower, because they spin while they wait. The limit
    holds for the whole process until the thread that set it leaves. One thread sets it at a time: others that enter
    meanwhile find it set, and may be slower for the rest if it is lifted before they leave. Never wrong, at worst slow.
    """
    if not _held.acquire(blocking=False):
        yield
        return
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        _held.release()


@cache
def _controller() -> ThreadpoolController:
    """Found once: looking through the loaded libraries takes some milliseconds."""
    return ThreadpoolController()
