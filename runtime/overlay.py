"""A label map drawn over its picture, with a legend below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .legend_font import legend_text

OPACITY = 0.55
"""Of the class colours: names can be told by colour, and the picture still be seen."""
LONGEST_NAME = 48
"""Characters of a name in the legend; the rest is cut."""
MAX_LEGEND_ROWS = 40
"""Classes in the legend; the smallest ones beyond are counted in one line."""


@dataclass(frozen=True, kw_only=True)
class LegendRow:
    """One class of the legend."""

    index: int
    """Shown where no font has the letters of the name."""
    name: str
    colour: tuple[int, int, int]
    area: float
    """Part of the picture, 0 to 1."""


def draw_overlay(
    picture: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8 | np.uint16], palette: npt.NDArray[np.uint8]
) -> Image.Image:
    """Blend the class colours into the picture, and draw the borders between classes.

    Args:
        picture: (h, w, 3) RGB of any size; resized to the label map's if it differs.
        labels: (H, W) class indices.
        palette: (N, 3) RGB.

    Returns:
        An RGB image of the label map's size.
    """
    height, width = labels.shape
    base = Image.fromarray(picture)
    if base.size != (width, height):
        base = base.resize((width, height), Image.Resampling.BILINEAR)
    # Pillow blends eight bits in place; as float32 arrays a 12-megapixel picture would take 300 MB.
    blended = np.array(Image.blend(base, Image.fromarray(palette[labels]), OPACITY))
    blended[_borders(labels)] = (20, 20, 20)
    return Image.fromarray(blended)


def add_legend(overlay: Image.Image, rows: Sequence[LegendRow]) -> Image.Image:
    """The overlay with a white panel below it: a swatch, the name and the area of each class, largest first."""
    size = int(min(max(overlay.width / 45, 13), 40))
    shown = sorted(rows, key=lambda row: -row.area)
    texts = []
    for row in shown[:MAX_LEGEND_ROWS]:
        name, font = legend_text(_shortened(row.name), row.index, size)
        texts.append((f"{name}  {100 * row.area:.1f} %", font))
    if len(shown) > MAX_LEGEND_ROWS:
        texts.append((f"and {len(shown) - MAX_LEGEND_ROWS} more", legend_text("", 0, size)[1]))
    line, pad = round(1.6 * size), round(0.6 * size)
    column = round(max(font.getlength(text) for text, font in texts)) + line + 2 * pad
    width = max(overlay.width, column)
    columns = max(1, min(len(texts), width // column))
    lines = -(-len(texts) // columns)
    panel = Image.new("RGB", (width, overlay.height + lines * line + 2 * pad), "white")
    panel.paste(overlay, (0, 0))
    draw = ImageDraw.Draw(panel)
    for i, (text, font) in enumerate(texts):
        left = pad + (i // lines) * (width // columns)
        top = overlay.height + pad + (i % lines) * line
        if i < MAX_LEGEND_ROWS:
            draw.rectangle((left, top, left + size, top + size), fill=shown[i].colour, outline="black")
        draw.text((left + line, top + size / 2), text, fill="black", font=font, anchor="lm")
    return panel


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."  # "…" is not in every font


def _borders(labels: npt.NDArray[np.uint8 | np.uint16]) -> npt.NDArray[np.bool_]:
    """(H, W): the pixel to the right or below is of another class."""
    borders = np.zeros(labels.shape, dtype=np.bool_)
    borders[:, :-1] = labels[:, :-1] != labels[:, 1:]
    borders[:-1] |= labels[:-1] != labels[1:]
    return borders
