"""Bilinear resizing as matrices: one for rows, one for columns, also for two resizes and a crop in between.

Source: `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`, half-pixel centres, no antialias.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]


def resize_weights(source: int, target: int) -> npt.NDArray[np.float64]:
    """Weights of one axis.

    Args:
        source: length before.
        target: length after.

    Returns:
        (target, source); each row holds at most two weights, which sum to 1.
    """
    centres = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    first = np.minimum(centres.astype(np.int64), source - 1)
    second = np.minimum(first + 1, source - 1)
    fraction = np.where(second > first, centres - first, 0.0)
    weights = np.zeros((target, source))
    rows = np.arange(target)
    weights[rows, first] = 1 - fraction
    weights[rows, second] += fraction
    return weights


def mask_to_output_weights(mask: int, canvas: int, valid: int, output: int) -> Matrix:
    """Weights of one axis from mask logits to the output: resize to the canvas, crop to the picture, resize again.

    Args:
        mask: rows (or columns) of the mask logits.
        canvas: of the canvas.
        valid: of the canvas that hold the picture.
        output: of the label map.

    Returns:
        (output, mask) float32. Rows sum to 1 and have no negative weight: an output value lies between the least and
        the greatest mask value it is made of.
    """
    weights = resize_weights(mask, canvas)[:valid]
    if output != valid:
        weights = resize_weights(valid, output) @ weights
    return weights.astype(np.float32)


def support(weights: Matrix) -> tuple[int, int]:
    """First and one-past-last column with a weight: what part of the source some rows read."""
    used = np.flatnonzero(weights.any(axis=0))
    return int(used[0]), int(used[-1]) + 1
