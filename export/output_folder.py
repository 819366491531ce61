"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import ExportError


@contextlib.contextmanager
def whole_folder(target: Path, *, overwrite: bool, needed_bytes: int) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it takes the target's name when the block ends well.

    After an error or Ctrl-C nothing is left, and a folder that was there before is as it was. What a killed run left
    behind is cleared by the next one.

    Raises:
        ExportError: the target exists and `overwrite` is False, cannot be written, or the disk is too small.
    """
    target = Path(os.path.abspath(target))
    if os.path.exists(target) and not overwrite:  # unlike Path.exists, False for a name no disk can hold
        raise ExportError(f"output {target} exists", cure="give --overwrite, or another -o")
    if os.path.exists(target) and not (target.is_dir() and (target / "bundle.json").is_file()):
        raise ExportError(f"output {target} exists and is not a bundle", cure="give another -o")
    partial = target.with_name(f".{target.name}.partial")
    previous = target.with_name(f".{target.name}.previous")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < needed_bytes:
            raise ExportError(
                f"output {target}: {free / 1e9:.1f} GB free on the disk, {needed_bytes / 1e9:.1f} GB needed",
                cure="free some space, or give -o on another disk",
            )
        yield partial
        if os.path.exists(target):
            shutil.rmtree(previous, ignore_errors=True)
            target.rename(previous)
        partial.rename(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ExportError(
            f"output {target}: cannot be written: {reason}", cure="check the path and its rights"
        ) from error
    finally:
        if not os.path.exists(target) and os.path.exists(previous):
            previous.rename(target)
        shutil.rmtree(previous, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
