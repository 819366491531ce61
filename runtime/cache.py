"""Where the runtime keeps what it can make again: unpacked bundles and encoded class names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "EBSEG_CACHE"


def cache_folder(kind: str) -> Path:
    """The folder for one kind of cached file; not created here.

    Args:
        kind: "bundles" or "prompts"; the name of the folder's last part.

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
