"""Write a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put `data` into `path` by way of a temporary file beside it.

    A reader sees the old file or the new one, never a part; after a failure nothing new is left behind.

    Args:
        path: the file; its folder must exist.
        data: all of its content.
        durable: wait until the content is on the disk, so that this holds after a power cut, too. Costs up to
            50 ms a file on an SD card.

    Raises:
        OSError: the folder is missing, is not writable, or the disk is full.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")
    try:
        # Not tempfile: it gives mode 0600, whatever the user's umask allows.
        with temporary.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
