"""Fonts for the legend: class names come in every script, and no font has them all.

Pillow's own font holds ASCII alone. For other names the fonts that systems usually bring are looked for; a name that
none of them can draw is shown by its class index, never as a row of boxes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "DroidSansFallbackFull.ttf",
    "wqy-microhei.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoEmoji-Regular.ttf",
    "Symbola.ttf",
    "Arial Unicode.ttf",
    "Arial.ttf",
    "msyh.ttc",
    "malgun.ttf",
    "msgothic.ttc",
    "seguiemj.ttf",
)
"""File names that Pillow looks for in the system's font folders: Linux, then macOS, then Windows."""

MISSING = "\U0010ffff"
"""A noncharacter: what a font draws for it, it draws for every character it has not."""


def legend_text(name: str, index: int, size: int) -> tuple[str, Font]:
    """What to draw for a class, and the font that can.

    Args:
        name: of the class, in any script.
        index: of the class.
        size: of the font, in pixels.

    Returns:
        The name without invisible characters and the first font that has all of its letters. If there is none: the
        name without accents, if Pillow's own font has that; else the index and as much of the name as it has.
    """
    text = "".join(letter for letter in unicodedata.normalize("NFC", name) if _is_drawn(letter))
    for font in _fonts(size):
        if all(_has(font, letter) for letter in text):
            return text, font
    own = _own_font(size)
    bare = "".join(letter if _has(own, letter) else unicodedata.normalize("NFD", letter)[0] for letter in text)
    if all(_has(own, letter) for letter in bare):
        return bare, own
    rest = " ".join("".join(letter if _has(own, letter) else " " for letter in bare).split())
    return f"class {index}" + (f" ({rest})" if any(map(str.isalnum, rest)) else ""), own


def _is_drawn(letter: str) -> bool:
    """Joiners, direction marks and variation selectors have no shape; simple layout draws a box for them."""
    return unicodedata.category(letter) != "Cf" and not 0xFE00 <= ord(letter) <= 0xFE0F


def _fonts(size: int) -> Iterator[Font]:
    yield _own_font(size)
    for file in SYSTEM_FONTS:
        font = _system_font(file, size)
        if font is not None:
            yield font


@lru_cache(maxsize=64)
def _own_font(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(maxsize=64 * len(SYSTEM_FONTS))
def _system_font(file: str, size: int) -> Font | None:
    """The font, or None where it is not installed or not of outlines."""
    try:
        return ImageFont.truetype(file, size)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4096)
def _has(font: Font, letter: str) -> bool:
    if letter.isspace():
        return True
    shape, missing = font.getmask(letter), font.getmask(MISSING)
    return (shape.size, bytes(shape)) != (missing.size, bytes(missing))
