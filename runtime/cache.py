"""Where the toolkit keeps what it can make again (unpacked bundles, encoded class names), and how it stays small."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

CACHE_VARIABLE = "EBSEG_CACHE"

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "bundles": "unpacked zips",
        "prompts": "encoded class names",
        "sentinels": "passes of engines on this GPU",
        "onnxruntime-engines": "engines that ONNX Runtime's providers built",
        "calibration": "measured ranges of activations",
    }
)
"""What can be thrown away at any time, by its folder. Training data that lie beside it are downloads, and no kind."""

LARGEST_KIND_BYTES = 8 << 30
"""What `trim_folder` is asked to leave of unpacked bundles, and of engines: three of EBSeg-L in FP32."""

IDLE_SECONDS = 24 * 3600
"""What was used since then may be in use: graphs are opened when they are needed, not all at once."""


_REMOVING = ".removing-"


def cache_folder(kind: str) -> Path:
    """The folder for one kind of cached file; not created here.

    Args:
        kind: one of KINDS; the name of the folder's last part.

    Returns:
        `$EBSEG_CACHE/<kind>`, else the platform's cache folder (`$XDG_CACHE_HOME`, `~/.cache`, `~/Library/Caches`,
        `%LOCALAPPDATA%`) followed by `ebseg-deploy/<kind>`.
    """
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own).expanduser() / kind
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "ebseg-deploy" / kind


def used_bytes(folder: Path) -> int:
    """Bytes of the files in a folder; 0 if there is none."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            total += 0 if path.is_dir() else path.lstat().st_size
    return total


def clear_cache() -> dict[str, int]:
    """Throw away all of KINDS.

    Returns:
        Bytes that were freed, by kind; what cannot be removed is left and not counted.
    """
    freed = {}
    for kind in KINDS:
        folder = cache_folder(kind)
        for leftover in folder.parent.glob(f"{_REMOVING}*"):
            remove_folder(leftover)
        freed[kind] = used_bytes(folder) - remove_folder(folder)
    return freed


def trim_folder(folder: Path, *, limit_bytes: int, keep: Path) -> None:
    """Remove the longest unused of a folder's subfolders until the rest is below a limit.

    A subfolder was used when its own time was last set (`mark_used`). `keep`, and what was used within IDLE_SECONDS,
    stays even if that is too much. What a broken-off run left goes as well, once it is idle.
    """
    now, found = time.time(), []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path))
    sizes = {path: used_bytes(path) for _, path in found}
    total = sum(sizes.values())
    for used, path in sorted(found):
        idle = now - used > IDLE_SECONDS and path != keep
        if idle and (total > limit_bytes or path.name.startswith(".")):
            remove_folder(path)
            total -= sizes[path]


def mark_used(folder: Path) -> None:
    """Set a folder's time to now, for `trim_folder`."""
    with contextlib.suppress(OSError):  # a cache that somebody else filled, and that may only be read
        os.utime(folder)


def remove_folder(folder: Path) -> int:
    """Remove a folder so that no reader sees a part of it: it loses its name first.

    Returns:
        Bytes that could not be removed; `trim_folder` and `clear_cache` try again.
    """
    doomed = folder.with_name(f"{_REMOVING}{secrets.token_hex(8)}")
    try:
        folder.rename(doomed)
    except OSError:
        return used_bytes(folder)
    shutil.rmtree(doomed, ignore_errors=True)
    return used_bytes(doomed)
