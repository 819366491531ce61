"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import ExportError
from .owner_mark import is_abandoned, owner_mark

_NAME_BYTES = 100
"""Of the target's name in the names beside it: with what follows they stay below the 255 that file systems take."""


@contextlib.contextmanager
def whole_folder(target: Path, *, overwrite: bool, needed_bytes: int) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it takes the target's name when the block ends well.

    After an error or Ctrl-C nothing is left, and a folder that was there before is as it was. What a killed run left
    behind is cleared by the next one. Several runs may have one target: none sees another's files, and without
    `overwrite` the first to end has it.

    Raises:
        ExportError: the target exists and `overwrite` is False, cannot be written, or the disk is too small.
    """
    target = Path(os.path.abspath(target))
    own = owner_mark()
    partial, previous = _beside(target, "partial", own), _beside(target, "previous", own)
    try:
        _clear_leftovers(target)
        _check_target(target, overwrite)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < needed_bytes:
            raise ExportError(
                f"output {target}: {free / 1e9:.1f} GB free on the disk, {needed_bytes / 1e9:.1f} GB needed",
                cure="free some space, or give -o on another disk",
            )
        yield partial
        _check_target(target, overwrite)  # again: another run may have been faster
        if os.path.exists(target):
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


def _check_target(target: Path, overwrite: bool) -> None:
    if os.path.exists(target) and not overwrite:  # unlike Path.exists, False for a name no disk can hold
        raise ExportError(f"output {target} exists", cure="give --overwrite, or another -o")
    if os.path.exists(target) and not (target.is_dir() and (target / "bundle.json").is_file()):
        raise ExportError(f"output {target} exists and is not a bundle", cure="give another -o")


def _beside(target: Path, kind: str, own: str) -> Path:
    return target.with_name(f".{_short(target.name)}.{kind}-{own}")


def _short(name: str) -> str:
    """A target's name, or of a long one its start and its hash: another target gives another."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _NAME_BYTES else f"{name[:20]}-{hashlib.sha256(encoded).hexdigest()[:16]}"


def _clear_leftovers(target: Path) -> None:
    """Remove what killed runs left, and put back what one of them had moved away last."""
    name = f".{_short(target.name)}."
    for kind in ("previous", "partial"):
        for path in sorted(target.parent.glob(f"{glob.escape(name + kind)}-*")):
            if not is_abandoned(path, path.name.removeprefix(f"{name}{kind}-")):
                continue
            if kind == "previous" and not os.path.exists(target):
                path.rename(target)
            shutil.rmtree(path, ignore_errors=True)
