"""What everybody who writes a bundle shares: the record of its files, the time, and how progress is told."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path

from ..contract import MANIFEST_NAME, FileRecord
from ..errors import InputError
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


def time_of_writing() -> str:
    """Now in UTC, to the second; or what SOURCE_DATE_EPOCH says, for bundles that come out the same again.

    Raises:
        InputError: SOURCE_DATE_EPOCH is no time.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    try:
        return datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(
            f"SOURCE_DATE_EPOCH is {epoch!r}", cure="give whole seconds since 1970, or unset it"
        ) from error
