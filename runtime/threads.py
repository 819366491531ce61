"""How many cores there are to use, and how numpy's matrix products share them with threads of ours."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_users = 0
_limiter: Any = None


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep numpy's matrix products on the calling thread.

    For work that is spread over threads of ours: BLAS threads on top of them make small products fifty times slower
    on two cores, because they spin while they wait. Holds for the whole process; the last user to leave undoes it.
    """
    global _users, _limiter
    with _lock:
        if _users == 0:
            _limiter = _controller().limit(limits=1, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limiter.restore_original_limits()
                _limiter = None


@cache
def _controller() -> ThreadpoolController:
    """Found once: looking through the loaded libraries takes some milliseconds."""
    return ThreadpoolController()
