"""Encoded class names on disk, so that no name is encoded twice by the same text encoder."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .atomic_write import write_atomically

FORMAT = 1
"""Part of every key: raise it when what is stored changes its meaning."""


class EmbeddingCache:
    """Embeddings by content: encoder, templates and name make the key, so nothing ever has to be invalidated.

    A cache is a convenience: a folder that cannot be written to and a damaged entry count as "not there".
    """

    def __init__(self, folder: Path | None, *, encoder: str, templates: Sequence[str], width: int) -> None:
        """
        Args:
            folder: where the entries are; None keeps nothing.
            encoder: what encodes: hashes of the text encoder, and what else changes its numbers.
            templates: prompt templates, in order.
            width: D, the length of an embedding.
        """
        self.folder = folder
        self.width = width
        self._context = [FORMAT, encoder, list(templates), width]

    def get(self, name: str) -> NDArray[np.float32] | None:
        """The embedding of `name`, (D,) float32, or None when it is not there."""
        if self.folder is None:
            return None
        try:
            data = self._file(name).read_bytes()
            row = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        fits = isinstance(row, np.ndarray) and row.dtype == np.float32 and row.shape == (self.width,)
        return row if fits and abs(float(np.linalg.norm(row)) - 1) < 1e-3 else None

    def put(self, name: str, row: NDArray[np.float32]) -> None:
        """Keep the embedding of `name`, (D,) float32."""
        if self.folder is None:
            return
        buffer = io.BytesIO()
        np.save(buffer, row, allow_pickle=False)
        path = self._file(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, buffer.getvalue(), durable=False)
        except OSError:
            self.folder = None  # read-only or full: the next thousand names would fail the same way

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        digest = hashlib.sha256(json.dumps([*self._context, name]).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.npy"
