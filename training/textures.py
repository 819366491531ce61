"""Procedural textures for stuff: sky, grass, water, sand, wood, brick wall, snow, road, leaves.

Each is drawn from smooth noise and a few strokes, so that the class is in the texture and the colour together, and no
two variants are alike. Deterministic from the generator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .emoji_classes import STUFF_NAMES

Texture: TypeAlias = NDArray[np.uint8]
"""(side, side, 3) RGB."""
_Field: TypeAlias = NDArray[np.floating[Any]]


def noise(rng: np.random.Generator, side: int, cells: tuple[int, int]) -> _Field:
    """Smooth noise in 0..1: random values on a (rows, columns) grid, enlarged bicubically to (side, side)."""
    grid = rng.random(cells, dtype=np.float32)
    picture = Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)
    clipped: _Field = np.clip(np.asarray(picture), 0, 1)
    return clipped


def _octaves(rng: np.random.Generator, side: int, *cells: int) -> _Field:
    """Sum of noises, each half as strong as the one before, scaled to a maximum of 1."""
    field: _Field = np.zeros((side, side), np.float32)
    for octave, count in enumerate(cells):
        field += noise(rng, side, (count, count)) * 0.5**octave
    total: _Field = field / np.float32(2 - 0.5 ** (len(cells) - 1))
    return total


def _mix(dark: tuple[int, int, int], light: tuple[int, int, int], amount: _Field) -> _Field:
    low, high = np.asarray(dark, np.float32), np.asarray(light, np.float32)
    mixed: _Field = low + (high - low) * np.clip(amount, 0, 1)[..., None]
    return mixed


def _sky(rng: np.random.Generator, side: int) -> _Field:
    height = np.linspace(0, 1, side, dtype=np.float32)[:, None] * np.ones((1, side), np.float32)
    base = _mix((70, 135, 220), (175, 215, 245), height)
    clouds = np.clip(_octaves(rng, side, 3, 7, 15) * 3.2 - 1.7, 0, 0.9)[..., None]
    clouded: _Field = base * (1 - clouds) + 250 * clouds
    return clouded


def _grass(rng: np.random.Generator, side: int) -> _Field:
    blades = noise(rng, side, (side // 10, side // 2))
    return _mix((40, 105, 25), (135, 190, 60), 0.65 * blades + 0.35 * _octaves(rng, side, 4, 9))


def _water(rng: np.random.Generator, side: int) -> _Field:
    ripples = noise(rng, side, (side // 6, side // 40))
    crests = np.clip(ripples * 3 - 1.9, 0, 0.7)[..., None]
    crested: _Field = _mix((10, 80, 130), (40, 140, 180), _octaves(rng, side, 3, 6)) * (1 - crests) + 235 * crests
    return crested


def _sand(rng: np.random.Generator, side: int) -> _Field:
    grain = rng.random((side, side), dtype=np.float32)
    return _mix((190, 155, 100), (240, 215, 165), 0.4 * grain + 0.6 * _octaves(rng, side, 5, 12))


def _wood(rng: np.random.Generator, side: int) -> _Field:
    plank = int(rng.integers(28, 48))
    rows = np.arange(side)
    grain = noise(rng, side, (side // 3, max(2, side // 60)))
    tones = rng.random(side // plank + 1, dtype=np.float32)[rows // plank][:, None]
    base = _mix((105, 62, 30), (185, 125, 72), 0.6 * grain + 0.4 * tones)
    base[rows % plank < 2] *= 0.55
    return base


def _brick(rng: np.random.Generator, side: int) -> _Field:
    height, width = int(rng.integers(14, 20)), int(rng.integers(34, 44))
    rows, columns = np.mgrid[0:side, 0:side]
    course = rows // height
    shifted = columns + (course % 2) * (width // 2)
    mortar = (rows % height < 2) | (shifted % width < 2)
    tones = rng.random((side // height + 1, side // width + 2), dtype=np.float32)[course, shifted // width]
    base = _mix((125, 50, 38), (185, 95, 70), 0.7 * tones + 0.3 * noise(rng, side, (side // 3, side // 3)))
    base[mortar] = (200, 192, 180)
    return base


def _snow(rng: np.random.Generator, side: int) -> _Field:
    return _mix((205, 218, 235), (252, 253, 255), _octaves(rng, side, 4, 8) * 1.3 - 0.1)


def _road(rng: np.random.Generator, side: int) -> _Field:
    grain = rng.random((side, side), dtype=np.float32)
    base = _mix((60, 62, 66), (110, 112, 116), 0.5 * grain + 0.5 * _octaves(rng, side, 4, 10))
    stripe, dash = int(rng.integers(80, 130)), int(rng.integers(40, 70))
    rows, columns = np.mgrid[0:side, 0:side]
    base[(rows % stripe < 7) & (columns % dash < dash * 0.6)] = (225, 222, 210)
    return base


def _leaves(rng: np.random.Generator, side: int) -> _Field:
    blobs = noise(rng, side, (side // 9, side // 9))
    edges = (np.floor(blobs * 5) / 5).astype(np.float32)
    return _mix((15, 55, 30), (70, 150, 75), 0.75 * edges + 0.25 * _octaves(rng, side, 4, 8))


_PAINTERS: dict[str, Callable[[np.random.Generator, int], _Field]] = {
    "sky": _sky,
    "grass": _grass,
    "water": _water,
    "sand": _sand,
    "wood": _wood,
    "brick wall": _brick,
    "snow": _snow,
    "road": _road,
    "leaves": _leaves,
}
if tuple(_PAINTERS) != STUFF_NAMES:
    raise AssertionError("every stuff class needs a painter, in the order of STUFF_NAMES")


def paint(name: str, rng: np.random.Generator, side: int) -> Texture:
    """One variant of a stuff texture.

    Args:
        name: one of STUFF_NAMES.
        rng: decides the variant.
        side: pixels; 128 or more.
    """
    pixels = _PAINTERS[name](rng, side)
    tint = 1 + 0.12 * (rng.random(3, dtype=np.float32) - 0.5)
    return np.clip(pixels * tint, 0, 255).astype(np.uint8)


def texture_bank(seed: int, variants: int, side: int) -> NDArray[np.uint8]:
    """(stuff, variants, side, side, 3): several variants of every stuff class; painting one costs some 10 ms."""
    rng = np.random.default_rng([seed, 0x7E])
    return np.stack([np.stack([paint(name, rng, side) for _ in range(variants)]) for name in STUFF_NAMES])
