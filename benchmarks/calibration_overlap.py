"""Whether a quantised bundle was calibrated on the very pictures its accuracy is measured on."""

from __future__ import annotations

from collections.abc import Callable

from ..calibration.coverage import Overlap, overlap
from ..calibration.look import content_hash, look_of
from ..calibration.ranges import CALIBRATION_NAME, PictureRecord, read_ranges
from ..runtime.bundle import Bundle
from ..runtime.picture import read_picture
from .labelled_sets import LabelledSet


def calibration_overlap(
    bundle: Bundle, examples: LabelledSet, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Overlap | None:
    """Look for calibration pictures in an evaluation set; None for a bundle that was not calibrated.

    Every picture of the set is read once, which takes some hundredths of a second each.

    Raises:
        InputError: a picture cannot be read.
        CalibrationError: the bundle's ranges file cannot be read.
    """
    if CALIBRATION_NAME not in bundle.manifest.files:
        return None
    calibrated = read_ranges(bundle.file(CALIBRATION_NAME)).pictures
    evaluated = []
    for index in range(len(examples)):
        example = examples.example(index)
        pixels = read_picture(example.picture, name=example.name)
        evaluated.append(PictureRecord(name=example.name, sha256=content_hash(pixels), look=look_of(pixels)))
        progress(index + 1, len(examples))
    return overlap(calibrated, evaluated)
