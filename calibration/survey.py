"""Look at every picture once, before hours are spent on them: which can be used, and what they are like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..runtime.picture import RGB
from .look import content_hash, look_of
from .pictures import CalibrationPicture, CalibrationPictures
from .ranges import PictureRecord

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Source: ITU-R BT.601."""


class PictureFacts(NamedTuple):
    """What coverage is judged by."""

    height: int
    width: int
    brightness: float
    """Mean luma, 0 to 255."""
    contrast: float
    """Standard deviation of luma."""
    classes: tuple[int, ...]
    """Indices of the classes that occur; none where labels are not known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SurveyedPictures:
    """Pictures of a source that can be used, and those that cannot. Make one with `survey`."""

    source: CalibrationPictures
    places: tuple[int, ...]
    """Index of each usable picture in the source."""
    records: tuple[PictureRecord, ...]
    facts: tuple[PictureFacts, ...]
    skipped: tuple[str, ...] = ()
    """What is wrong with each picture that could not be read; names it."""
    duplicates: tuple[str, ...] = ()
    """Pictures left out because another one has the very same pixels."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def identity(self) -> str:
        """Hash of the pictures' content, in their order."""
        return hashlib.sha256("\n".join(record.sha256 for record in self.records).encode()).hexdigest()

    def pixels(self, index: int) -> RGB:
        """A picture, read or made once more.

        Raises:
            InputError: it has changed since the survey.
        """
        pixels = self.source.picture(self.places[index]).pixels
        if content_hash(pixels) != self.records[index].sha256:
            raise InputError(
                f"picture {self.records[index].name}: has changed since it was looked at", cure="start again"
            )
        return pixels


def survey(
    source: CalibrationPictures,
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SurveyedPictures:
    """Look at a source's pictures until `limit` of them can be used.

    Raises:
        InputError: none of them can be used.
    """
    wanted = len(source) if limit is None else min(limit, len(source))
    places: list[int] = []
    records: list[PictureRecord] = []
    facts: list[PictureFacts] = []
    skipped: list[str] = []
    duplicates: list[str] = []
    seen: set[str] = set()
    for place in range(len(source)):
        if len(places) == wanted:
            break
        try:
            picture = source.picture(place)
        except InputError as error:
            skipped.append(error.message)
            continue
        digest = content_hash(picture.pixels)
        if digest in seen:
            duplicates.append(picture.name)
            continue
        seen.add(digest)
        places.append(place)
        records.append(PictureRecord(name=picture.name, sha256=digest, look=look_of(picture.pixels)))
        facts.append(_facts(picture, source.classes))
        progress(len(places), wanted)
    if not places:
        first = skipped[0] if skipped else "it is empty"
        raise InputError(f"pictures {source.name}: none can be used: {first}", cure="give PNG, JPEG or WebP files")
    return SurveyedPictures(
        source=source,
        places=tuple(places),
        records=tuple(records),
        facts=tuple(facts),
        skipped=tuple(skipped),
        duplicates=tuple(duplicates),
    )


def _facts(picture: CalibrationPicture, classes: Sequence[str]) -> PictureFacts:
    height, width = picture.pixels.shape[:2]
    step = max(1, min(height, width) // 256)  # every n-th pixel tells enough of a large picture
    luma = picture.pixels[::step, ::step].astype(np.float32) @ LUMA
    found = () if picture.labels is None else tuple(int(each) for each in np.unique(picture.labels))
    return PictureFacts(
        height=height,
        width=width,
        brightness=float(luma.mean()),
        contrast=float(luma.std()),
        classes=tuple(each for each in found if each < len(classes)),
    )
