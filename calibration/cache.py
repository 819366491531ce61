"""Ranges that were found before, as JSON a person can read: one file for a graph and the pictures it was run on.

A file's name and key are a hash of the graph with its weights, the pictures' pixels, the tensors and the observer. The
counts of `counts` lie beside it and are independent of the observer and of what else is observed: another observer, or
a recipe whose tensors were counted for another one, needs no further run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from .. import __version__
from ..contract import Record
from ..runtime.atomic_write import write_atomically
from .counts import KEY_DIGITS
from .ranges import Range


class CachedRanges(Record, frozen=True, kw_only=True):
    """One file of the cache."""

    key: str
    graph: str
    """Name of the .onnx file, without suffix."""
    graph_sha256: str
    data: str
    """Feeds.identity: of the pictures, the canvas and, for a decoder, the encoders."""
    pictures_from: str
    pictures: tuple[str, ...]
    """Their names."""
    observer: str
    ranges: dict[str, Range]


def ranges_key(graph: str, tensors: Sequence[str], data: str, observer: str) -> str:
    """What ranges depend on, as a sha256; a release may change an observer, so it is part of it."""
    content = {
        "graph": graph,
        "tensors": list(tensors),
        "data": data,
        "observer": observer,
        "release": __version__,
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def cache_file(folder: Path, graph: str, key: str) -> Path:
    """Where ranges of that key are kept."""
    return folder / f"{graph}-{key[:KEY_DIGITS]}.json"


def load_cached(folder: Path, graph: str, key: str) -> Mapping[str, Range] | None:
    """Ranges kept under this key; None if there are none, or if the file is damaged: it is written anew then."""
    try:
        cached = msgspec.json.decode(cache_file(folder, graph, key).read_bytes(), type=CachedRanges)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return cached.ranges if cached.key == key else None


def store(folder: Path, cached: CachedRanges) -> None:
    """Keep ranges, whole or not at all.

    Raises:
        OSError: the disk is full or the folder not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode(cached), indent=1) + b"\n"
    write_atomically(cache_file(folder, cached.graph, cached.key), content)
