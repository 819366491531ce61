"""How far two label maps agree: the share of equal pixels, and the IoU of each class between the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """Counts over one picture, or, added up, over many."""

    both: npt.NDArray[np.int64]
    """(N,) pixels that both maps give to a class."""
    first: npt.NDArray[np.int64]
    """(N,) pixels that the first map gives to it."""
    second: npt.NDArray[np.int64]
    """(N,) pixels that the second map gives to it."""

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(both=self.both + other.both, first=self.first + other.first, second=self.second + other.second)

    @property
    def pixels(self) -> int:
        """Pixels compared."""
        return int(self.first.sum())

    @property
    def pixel_agreement(self) -> float:
        """Share of the pixels that have the same class in both, 0 to 1."""
        return float(self.both.sum() / self.first.sum())

    @property
    def class_iou(self) -> npt.NDArray[np.float64]:
        """(N,) intersection over union of each class's pixels; NaN for a class in neither map."""
        union = self.first + self.second - self.both
        return np.where(union > 0, self.both / np.maximum(union, 1), np.nan)

    @property
    def mean_iou(self) -> float:
        """Mean of `class_iou` over the classes that are in one of the maps."""
        return float(np.nanmean(self.class_iou))


def label_agreement(first: npt.NDArray[Any], second: npt.NDArray[Any], classes: int) -> Agreement:
    """Compare two label maps of one picture.

    Args:
        first: (H, W) class indices below `classes`.
        second: (H, W), the same size.
        classes: N, the number of classes.

    Raises:
        InputError: the maps have no pixels, differ in size, or hold an index that is no class.
    """
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise InputError(
            f"label maps of {first.shape} and {second.shape} cannot be compared", cure="give two (H, W) of one size"
        )
    highest = max(int(first.max()), int(second.max()))
    if highest >= classes:
        raise InputError(f"label {highest} with {classes} classes", cure="use the vocabulary the maps were made with")
    return Agreement(
        both=_count(first[first == second], classes), first=_count(first, classes), second=_count(second, classes)
    )


def _count(labels: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    return np.bincount(labels.ravel(), minlength=classes).astype(np.int64)
