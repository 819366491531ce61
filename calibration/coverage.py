"""What calibration pictures show, what they lack, and whether they are among those that accuracy is measured on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .look import NEAR_BITS, bits_apart
from .ranges import PictureRecord
from .survey import SurveyedPictures

FEW = 32
"""Pictures below which the largest values of a layer are left to chance."""

DARK, BRIGHT = 85.0, 170.0
"""Thirds of 0..255: a picture's mean luma below, between or above."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over all pictures."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(least=float(min(values)), median=float(np.median(values)), most=float(max(values)))


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What a set of pictures holds."""

    pictures: int
    skipped: int
    """Pictures that could not be read."""
    duplicates: int
    height: Spread
    width: Spread
    aspect: Spread
    """Width over height."""
    brightness: Spread
    """Mean luma of a picture, 0 to 255."""
    contrast: Spread
    """Standard deviation of a picture's luma."""
    brightness_thirds: tuple[int, int, int]
    """Pictures that are dark, medium and bright."""
    class_pictures: dict[str, int]
    """Class -> pictures it occurs in, 0 included; empty where labels are not known."""

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Classes that occur in no picture."""
        return tuple(name for name, count in self.class_pictures.items() if not count)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What makes these pictures a poor sample, a line each."""
        lines = []
        if self.pictures < FEW:
            lines.append(f"only {self.pictures} pictures: rare large values may be missed; {FEW} or more are better")
        if self.pictures >= FEW and 0 in self.brightness_thirds:
            lacking = [
                name for name, n in zip(("dark", "medium", "bright"), self.brightness_thirds, strict=True) if not n
            ]
            lines.append(f"no {' and no '.join(lacking)} picture: activations of such pictures may be clipped")
        if self.absent_classes:
            shown = ", ".join(self.absent_classes[:8])
            more = len(self.absent_classes) - 8
            lines.append(
                f"{len(self.absent_classes)} of {len(self.class_pictures)} classes are in no picture: {shown}"
                f"{f' and {more} more' if more > 0 else ''}"
            )
        return tuple(lines)


def coverage(pictures: SurveyedPictures) -> Coverage:
    """Sum up a survey."""
    facts = pictures.facts
    dark = sum(each.brightness < DARK for each in facts)
    bright = sum(each.brightness > BRIGHT for each in facts)
    occurring = Counter(index for each in facts for index in each.classes)
    return Coverage(
        pictures=len(facts),
        skipped=len(pictures.skipped),
        duplicates=len(pictures.duplicates),
        height=Spread.of([each.height for each in facts]),
        width=Spread.of([each.width for each in facts]),
        aspect=Spread.of([each.width / each.height for each in facts]),
        brightness=Spread.of([each.brightness for each in facts]),
        contrast=Spread.of([each.contrast for each in facts]),
        brightness_thirds=(dark, len(facts) - dark - bright, bright),
        class_pictures={name: occurring[index] for index, name in enumerate(pictures.source.classes)},
    )


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Pictures of an evaluation set that calibration has used."""

    evaluated: int
    """Pictures of the evaluation set that were looked at."""
    same: tuple[tuple[str, str], ...]
    """Calibration and evaluation picture with the same pixels."""
    near: tuple[tuple[str, str], ...]
    """Pairs that look the same: resized, compressed or retouched copies."""

    def __bool__(self) -> bool:
        return bool(self.same or self.near)

    def __str__(self) -> str:
        found = len(self.same) + len(self.near)
        if not found:
            return f"none of {self.evaluated} evaluation pictures was calibrated on"
        calibrated, evaluated = (*self.same, *self.near)[0]
        return (
            f"{found} of {self.evaluated} evaluation pictures were calibrated on, {len(self.near)} as a resized "
            f"or compressed copy (first: {evaluated}, calibrated on as {calibrated}); accuracy on them is too good"
        )


def overlap(calibration: Sequence[PictureRecord], evaluation: Sequence[PictureRecord]) -> Overlap:
    """Find evaluation pictures that are calibration pictures too; each is named once."""
    by_content = {record.sha256: record for record in calibration}
    looks = [(record, record.look) for record in calibration if record.look]
    same, near = [], []
    for record in evaluation:
        if record.sha256 in by_content:
            same.append((by_content[record.sha256].name, record.name))
            continue
        twin = next(
            (other for other, look in looks if record.look and bits_apart(look, record.look) <= NEAR_BITS), None
        )
        if twin is not None:
            near.append((twin.name, record.name))
    return Overlap(evaluated=len(evaluation), same=tuple(same), near=tuple(near))
