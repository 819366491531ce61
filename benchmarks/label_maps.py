"""The label maps a bundle gives for the pictures of a set; kept, if several bundles are held against them."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.picture import PictureSource
from ..runtime.segmenter import Segmenter
from ..runtime.vocabulary import Vocabulary

Array = npt.NDArray[Any]


class LabelMaps:
    """A bundle's label maps with one vocabulary.

    Args:
        segmenter: of the bundle.
        vocabulary: of its text encoder.
        keep: segment no picture twice: its label map stays in memory, compressed (2 kB of an emoji scene's 66).
    """

    def __init__(self, segmenter: Segmenter, vocabulary: Vocabulary, *, keep: bool = False) -> None:
        self.segmenter = segmenter
        self.vocabulary = vocabulary
        self._keep = keep
        self._kept: dict[int, tuple[bytes, npt.DTypeLike, tuple[int, ...]]] = {}

    def of(self, index: int, picture: PictureSource) -> Array:
        """(H, W) class indices of the set's picture `index`."""
        if index in self._kept:
            packed, dtype, shape = self._kept[index]
            return np.frombuffer(zlib.decompress(packed), dtype).reshape(shape)
        labels = self.segmenter(picture, self.vocabulary).labels
        if self._keep:
            self._kept[index] = (zlib.compress(labels.tobytes(), level=1), labels.dtype, labels.shape)
        return labels
