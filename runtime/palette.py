"""One colour for each class index: the same index has the same colour in every picture and every vocabulary."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt

GOLDEN_RATIO_CONJUGATE = 0.618034
"""A turn of the hue by this part of the circle keeps every new hue far from the ones before it."""
TONES = ((0.80, 0.95), (0.95, 0.62), (0.45, 1.00), (0.60, 0.78))
"""Saturation and value, taken in turn, so that hues that come close after many turns differ in tone."""


def class_colours(count: int) -> npt.NDArray[np.uint8]:
    """(count, 3) uint8 RGB; none is black or white, which pictures and legends use themselves."""
    colours = np.empty((count, 3), dtype=np.uint8)
    for i in range(count):
        hue = (0.02 + i * GOLDEN_RATIO_CONJUGATE) % 1
        colours[i] = np.round(255 * np.array(colorsys.hsv_to_rgb(hue, *TONES[i % len(TONES)])))
    return colours
