"""What everybody who writes a bundle shares: the record of its files, and how progress is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..contract import MANIFEST_NAME, FileRecord
from ..runtime.hashing import file_sha256

Progress = Callable[[str, int, int], None]
"""Called as progress(step, done, total) before each step, and once at the end."""


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Size and hash of every file of a bundle but the manifest."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }
