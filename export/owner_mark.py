"""Marks in the names of what is still being written: who writes it, so that what a killed run left can be cleared."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import time
from pathlib import Path

STALE_SECONDS = 24 * 3600
"""What another machine or container left is taken for abandoned after as long; whether its run lives cannot be seen."""


def owner_mark() -> str:
    """A mark of this process, another one with every call: "<machine>-<process>-<random>", without a dot."""
    return f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def is_abandoned(path: Path, mark: str) -> bool:
    """Whether no run works on a file or folder any more.

    Args:
        path: what carries the mark in its name.
        mark: as `owner_mark` made it; of any other only the age of `path` is judged.
    """
    machine, _, rest = mark.partition("-")
    process = rest.partition("-")[0]
    if machine == _machine() and process.isdecimal():
        import psutil

        return not psutil.pid_exists(int(process))
    try:
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except OSError:  # gone meanwhile
        return False


def _machine() -> str:
    """Tells machines and containers apart that share a disk: process ids count in each of them by themselves."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]
