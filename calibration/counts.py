"""Counts of a broken-off or finished collection, on disk: numpy arrays without pickle, written whole or not at all."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..runtime.atomic_write import write_atomically
from .histogram import BINS, Histogram

KEY_DIGITS = 24
"""Of a key's 64 in a file's name."""


@dataclass(kw_only=True)
class Counts:
    """Histograms of a graph's tensors, and how many runs each of them holds: not all came with one recipe."""

    histograms: dict[str, Histogram]
    done: dict[str, int] = field(default_factory=dict)

    @classmethod
    def none_of(cls, tensors: Sequence[str]) -> Counts:
        """Nothing counted yet."""
        return cls(histograms={tensor: Histogram() for tensor in tensors}, done=dict.fromkeys(tensors, 0))


def save_counts(path: Path, key: str, counts: Counts) -> None:
    """Write counts under the key of what they were counted on.

    Raises:
        OSError: the disk is full or the folder not writable.
    """
    names = list(counts.histograms)
    histograms = list(counts.histograms.values())
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        key=np.array(key),
        names=np.array(names),
        done=np.array([counts.done[name] for name in names], np.int64),
        counts=np.stack([each.counts for each in histograms]),
        exponents=np.array([each.exponent for each in histograms], np.int64),
        extents=np.array([(each.smallest, each.largest) for each in histograms]),
    )
    write_atomically(path, buffer.getvalue())


def load_counts(path: Path, key: str) -> Counts | None:
    """Counts that were saved under this key; None if there are none, of something else, or damaged."""
    try:
        with np.load(path, allow_pickle=False) as held:
            if str(held["key"]) != key or held["counts"].shape[1] != BINS:
                return None
            found = Counts.none_of([str(name) for name in held["names"]])
            counted, exponents, extents = held["counts"], held["exponents"], held["extents"]
            for place, (name, runs) in enumerate(zip(found.histograms, held["done"], strict=True)):
                histogram = found.histograms[name]
                histogram.counts = np.ascontiguousarray(counted[place], np.int64)
                histogram.exponent = int(exponents[place])
                histogram.smallest, histogram.largest = map(float, extents[place])
                found.done[name] = int(runs)
    except (OSError, EOFError, ValueError, KeyError, IndexError, BadZipFile, zlib.error):
        return None  # damaged: what can be counted again is no reason to stop
    return found
