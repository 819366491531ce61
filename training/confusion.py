"""The confusion matrix of label maps, and the figures read off it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError


class Confusion:
    """Counts of (true class, given class) over pixels whose truth is a class.

    Args:
        classes: N, the number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros((classes, classes), np.int64)
        """(N, N): row = truth, column = given."""

    def add(self, truth: npt.NDArray[Any], given: npt.NDArray[Any], ignore: int | None = None) -> None:
        """Count one label map.

        Args:
            truth: (H, W) class indices.
            given: (H, W) class indices, of the same size.
            ignore: value of `truth` that is not counted.

        Raises:
            InputError: the sizes differ, or a value is no class.
        """
        classes = len(self.counts)
        if truth.shape != given.shape:
            raise InputError(f"label maps of {truth.shape} and {given.shape} pixels", cure="give maps of one size")
        counted = np.ones(truth.shape, bool) if ignore is None else truth != ignore
        rows, columns = truth[counted].astype(np.int64), given[counted].astype(np.int64)
        for name, values in (("truth", rows), ("given", columns)):
            if values.size and not 0 <= values.min() <= values.max() < classes:
                raise InputError(
                    f"label {values.max()} in the {name}, wanted below {classes}"
                    + ("" if ignore is None else f" or {ignore}"),
                    cure="check that labels and vocabulary belong together",
                )
        self.counts += np.bincount(rows * classes + columns, minlength=classes * classes).reshape(classes, classes)

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """(N,) intersection over union; NaN for a class that is neither in the truth nor given."""
        hit = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - hit
        ratio: npt.NDArray[np.float64] = np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
        return ratio

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """(N,) share of a class's true pixels that were given it; NaN for a class that does not occur."""
        hit, total = np.diag(self.counts).astype(np.float64), self.counts.sum(1)
        ratio: npt.NDArray[np.float64] = np.divide(hit, total, out=np.full(len(hit), np.nan), where=total > 0)
        return ratio

    @property
    def pixel_accuracy(self) -> float:
        """Share of pixels given their true class; NaN when none was counted."""
        total = self.counts.sum()
        return float(np.diag(self.counts).sum() / total) if total else float("nan")

    def mean_iou(self, members: Sequence[int] | None = None) -> float:
        """Mean IoU over classes that occur in the truth, of `members` if given; NaN when none does.

        A class that does not occur is left out, as in the published evaluation: any pixel wrongly given to it counts
        against the class that was meant.
        """
        occurs = self.counts.sum(1) > 0
        if members is not None:
            chosen = np.zeros(len(occurs), bool)
            chosen[list(members)] = True
            occurs &= chosen
        return float(self.iou[occurs].mean()) if occurs.any() else float("nan")


@dataclass(frozen=True, kw_only=True)
class OpenVocabularyFigures:
    """The figures of open-vocabulary segmentation, 0 to 1; NaN where no class occurs."""

    seen_miou: float
    new_miou: float
    harmonic_miou: float
    miou: float
    """Over seen and new classes together."""
    background_miou: float
    """Over the classes left out of the others."""
    pixel_accuracy: float
    """Over all classes."""
    mean_class_accuracy: float


def figures(
    confusion: Confusion, seen: npt.NDArray[np.bool_], background: npt.NDArray[np.bool_] | None = None
) -> OpenVocabularyFigures:
    """Read the figures off a confusion matrix.

    Args:
        confusion: N classes.
        seen: (N,) whether a class had masks in training.
        background: (N,) classes that are left out of the seen, new and overall means; none unless given.
    """
    left_out = np.zeros(len(seen), bool) if background is None else background
    seen_miou = confusion.mean_iou(np.flatnonzero(seen & ~left_out).tolist())
    new_miou = confusion.mean_iou(np.flatnonzero(~seen & ~left_out).tolist())
    accuracy = confusion.accuracy
    return OpenVocabularyFigures(
        seen_miou=seen_miou,
        new_miou=new_miou,
        harmonic_miou=harmonic_mean(seen_miou, new_miou),
        miou=confusion.mean_iou(np.flatnonzero(~left_out).tolist()),
        background_miou=confusion.mean_iou(np.flatnonzero(left_out).tolist()),
        pixel_accuracy=confusion.pixel_accuracy,
        mean_class_accuracy=float(np.nanmean(accuracy)) if np.isfinite(accuracy).any() else float("nan"),
    )


def harmonic_mean(first: float, second: float) -> float:
    """2ab / (a + b); 0 when both are 0, NaN when one is."""
    total = first + second
    return 2 * first * second / total if total else 0.0 * total
