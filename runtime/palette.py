"""One colour for each class index: the same index has the same colour in every picture and every vocabulary.

Each colour is the one farthest, as the eye sees it (CIELAB), from all before it: the first ones, which small
vocabularies use alone, are the easiest to tell apart.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

LEVELS = 14
"""Steps per channel of the colours to choose from."""
LIGHTNESS = (35, 88)
"""Range of CIELAB's L: no black or white, which pictures and legends use themselves."""
MIN_CHROMA = 25
"""Distance from grey in CIELAB."""


def class_colours(count: int) -> npt.NDArray[np.uint8]:
    """(count, 3) uint8 RGB. The choice holds some thousand colours; with more classes than that they repeat."""
    order = _farthest_first(1 << max(6, (count - 1).bit_length()))
    return order[np.arange(count) % len(order)]


@cache
def _farthest_first(count: int) -> npt.NDArray[np.uint8]:
    """Up to `count` colours, each as far as can be from those before it; the first do not depend on `count`."""
    levels = np.linspace(0, 255, LEVELS).round()
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3).astype(np.uint8)
    lab = _to_lab(colours)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] >= LIGHTNESS[0]) & (lab[:, 0] <= LIGHTNESS[1]) & (chroma >= MIN_CHROMA)
    colours, lab = colours[usable], lab[usable]
    order = [int(chroma[usable].argmax())]
    distance = np.full(len(colours), np.inf)
    for _ in range(min(count, len(colours)) - 1):
        np.minimum(distance, ((lab - lab[order[-1]]) ** 2).sum(axis=1), out=distance)
        order.append(int(distance.argmax()))
    return colours[order]


def _to_lab(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """sRGB to CIELAB under D65; (…, 3). Source: IEC 61966-2-1 and CIE 15."""
    values = rgb / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)
