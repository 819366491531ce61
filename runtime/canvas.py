"""Lay a picture on a canvas, the fixed size a graph was exported for.

The picture is resized with its aspect kept, to the largest that fits, and put in the upper left corner. The rest is
zero; the graphs learn from `valid_size` where the picture ends, and zero the rest after normalising, as the reference
does. The reference resizes the shorter side to 640 (the longer to at most 2560) and pads to a multiple of 32: a canvas
of exactly that size (640x864 for a 4:3 picture) gives exactly that input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..contract import CANVAS_DIVISOR, Size
from ..errors import InputError

Resize = Literal["fit", "never"]
RESIZES: tuple[Resize, ...] = ("fit", "never")

LONGEST_TO_SHORTEST = 4
"""The reference's 2560 over 640."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a picture lies on its canvas."""

    canvas: Size
    valid_size: tuple[int, int]
    """Rows and columns of the canvas, from the upper left corner, that hold the picture."""

    @property
    def padding(self) -> float:
        """The part of the canvas that holds no picture, 0 to 1."""
        rows, columns = self.valid_size
        return 1 - rows * columns / (self.canvas.height * self.canvas.width)


def choose_canvas(height: int, width: int, canvases: Sequence[Size], resize: Resize = "fit") -> Placement:
    """The canvas that leaves the least padding; of equals, the largest.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        canvases: the sizes to choose from.
        resize: "fit" resizes the picture to the canvas; "never" keeps its own pixels.

    Raises:
        InputError: with "never", the picture is larger than every canvas.
    """
    if resize not in RESIZES:
        raise InputError(f"resize {resize!r}: unknown", cure=f"choose from {', '.join(RESIZES)}")
    if resize == "fit":
        placements = [Placement(canvas=c, valid_size=fitted_size(height, width, c)) for c in canvases]
    else:
        placements = [
            Placement(canvas=c, valid_size=(height, width)) for c in canvases if height <= c.height and width <= c.width
        ]
    if not placements:
        raise InputError(
            f"a picture of {height}x{width} fits on no canvas of {', '.join(map(str, canvases))} as it is",
            cure=f"use resize='fit', or export with `--size {_round_up(height)}x{_round_up(width)}`",
        )
    return min(placements, key=lambda p: (p.padding, -p.canvas.height * p.canvas.width))


def fitted_size(height: int, width: int, canvas: Size) -> tuple[int, int]:
    """Rows and columns of a picture resized to a canvas.

    The reference's size when that, padded, is the canvas; else the largest of the same aspect that fits.
    """
    reference = reference_size(height, width, shortest=min(canvas.height, canvas.width))
    if (_round_up(reference[0]), _round_up(reference[1])) == (canvas.height, canvas.width):
        return reference
    scale = min(canvas.height / height, canvas.width / width)
    rows, columns = int(height * scale + 0.5), int(width * scale + 0.5)
    return min(max(rows, 1), canvas.height), min(max(columns, 1), canvas.width)


def reference_size(height: int, width: int, shortest: int = 640) -> tuple[int, int]:
    """Rows and columns after the reference's test-time resize; its rounding is detectron2's ResizeShortestEdge."""
    scale = shortest / min(height, width)
    rows, columns = (shortest, scale * width) if height < width else (scale * height, shortest)
    longest = LONGEST_TO_SHORTEST * shortest
    if max(rows, columns) > longest:
        scale = longest / max(rows, columns)
        rows, columns = rows * scale, columns * scale
    return max(int(rows + 0.5), 1), max(int(columns + 0.5), 1)


def place_picture(picture: npt.NDArray[np.uint8], placement: Placement) -> npt.NDArray[np.uint8]:
    """Draw a picture on its canvas.

    Args:
        picture: (H, W, 3) RGB.
        placement: where; a picture of `valid_size` already is not resampled.

    Returns:
        uint8 (3, canvas height, canvas width), zero outside the picture.
    """
    rows, columns = placement.valid_size
    if picture.shape[:2] != (rows, columns):
        # Pillow's bilinear filter on uint8 (it averages when shrinking), as detectron2 resizes.
        picture = np.asarray(Image.fromarray(picture).resize((columns, rows), Image.Resampling.BILINEAR))
    canvas = np.zeros((3, placement.canvas.height, placement.canvas.width), dtype=np.uint8)
    canvas[:, :rows, :columns] = picture.transpose(2, 0, 1)
    return canvas


def _round_up(side: int) -> int:
    return -(-side // CANVAS_DIVISOR) * CANVAS_DIVISOR
