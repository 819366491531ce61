"""Emoji scenes: objects on stuff, with exact label maps; picture i of a split is a function of (seed, split, i) alone.

Difficulty 0..1 scales what makes a scene hard: contrast of the texture, rotation, colour jitter, blur, noise. At 0 an
object stands upright on an almost flat colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .emoji_classes import STUFF_NAMES, THINGS
from .sprites import SpriteBank
from .textures import texture_bank
from .unnamed_objects import UNNAMED

Split = Literal["train", "val", "test"]
_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_TEXTURE_VARIANTS = 10
_TEXTURE_SIDE = 320
_GROUND = ("grass", "water", "sand", "wood", "snow", "road")
_BACKDROP = ("sky", "brick wall", "leaves", "wood")
_MOST_COVERED = 0.35  # of an object already there, by a new one


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What scenes look like."""

    side: int = 256
    """Pixels of the square picture."""
    objects: tuple[int, int] = (3, 6)
    """Fewest and most objects."""
    object_side: tuple[int, int] = (52, 124)
    """Least and largest longer side of an object, in pixels; drawn log-uniformly."""
    difficulty: float = 1.0
    things: tuple[int, ...] = tuple(range(len(THINGS)))
    """Indices of the classes that may occur."""
    unnamed: float = 0.0
    """Share of the objects that are no class; the sprites must hold some, after the things."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture and its truth."""

    image: NDArray[np.uint8]
    """(side, side, 3) RGB."""
    labels: NDArray[np.uint8]
    """(side, side), index into CLASSES, or UNNAMED and above for an object without a name; every pixel is labelled."""


@dataclass(frozen=True, kw_only=True)
class SceneSource:
    """Makes the scenes of one split.

    Train, validation and test differ in seed and in texture variants; `sprites` decides the artists.
    """

    sprites: SpriteBank
    split: Split
    seed: int = 0
    textures: NDArray[np.uint8] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        bank = texture_bank(self.seed * 3 + _SPLITS.index(self.split), _TEXTURE_VARIANTS, _TEXTURE_SIDE)
        object.__setattr__(self, "textures", bank)

    def scene(self, index: int, config: SceneConfig) -> Scene:
        """Scene `index` of the split, under a config."""
        rng = np.random.default_rng([self.seed, _SPLITS.index(self.split), index])
        return compose(rng, self.sprites, self.textures, config)


def compose(rng: np.random.Generator, sprites: SpriteBank, textures: NDArray[np.uint8], config: SceneConfig) -> Scene:
    """Paint a background, put objects on it, then disturb the whole picture."""
    image, labels = _background(rng, textures, config)
    canvas = Image.fromarray(image)
    owner = np.full(labels.shape, -1, np.int16)  # which object a pixel shows
    areas: list[int] = []
    wanted = int(rng.integers(config.objects[0], config.objects[1] + 1))
    for _ in range(wanted * 6):
        if len(areas) == wanted:
            break
        unnamed = config.unnamed > 0 and rng.random() < config.unnamed
        if unnamed:
            thing = int(rng.integers(len(THINGS), sprites.pixels.shape[1]))
        else:
            thing = int(rng.choice(np.asarray(config.things)))
        artist = int(rng.integers(len(sprites.artists)))
        sprite = _vary(rng, Image.fromarray(sprites.pixels[artist, thing]), config)
        corner = _place(rng, sprite.size, config)
        shape = np.zeros(labels.shape, bool)
        left, top = corner
        alpha = np.asarray(sprite.getchannel("A")) >= 128
        rows = slice(max(top, 0), min(top + sprite.height, config.side))
        columns = slice(max(left, 0), min(left + sprite.width, config.side))
        shape[rows, columns] = alpha[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        covered = np.bincount(owner[shape & (owner >= 0)], minlength=len(areas))
        if any(covered[each] > _MOST_COVERED * areas[each] for each in range(len(areas))):
            continue
        canvas.paste(sprite, corner, sprite)
        labels[shape] = UNNAMED + len(areas) if unnamed else thing
        owner[shape] = len(areas)
        areas.append(int(shape.sum()))
    return Scene(image=_disturb(rng, canvas, config), labels=labels)


def _background(
    rng: np.random.Generator, textures: NDArray[np.uint8], config: SceneConfig
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One stuff everywhere, or a backdrop over a ground with a wavy border between."""
    side = config.side
    if rng.random() < 0.3:
        kinds = [str(rng.choice(STUFF_NAMES))]
    else:
        ground = str(rng.choice(_GROUND))
        kinds = [str(rng.choice([name for name in _BACKDROP if name != ground])), ground]
    indices = [STUFF_NAMES.index(kind) for kind in kinds]
    layers = [_texture(rng, textures[index], config) for index in indices]
    labels = np.full((side, side), len(THINGS) + indices[0], np.uint8)
    image = layers[0]
    if len(layers) == 2:
        knots = rng.random(6) * 0.12 * side * rng.random()
        horizon = side * rng.uniform(0.3, 0.7) + np.interp(np.linspace(0, 5, side), np.arange(6), knots)
        below = np.arange(side)[:, None] >= horizon[None, :]
        image = np.where(below[..., None], layers[1], image)
        labels[below] = len(THINGS) + indices[1]
    return image, labels


def _texture(rng: np.random.Generator, variants: NDArray[np.uint8], config: SceneConfig) -> NDArray[np.uint8]:
    source = variants[int(rng.integers(len(variants)))]
    top, left = (int(rng.integers(source.shape[0] - config.side + 1)) for _ in range(2))
    patch: NDArray[np.uint8] = source[top : top + config.side, left : left + config.side]
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    if config.difficulty >= 1:
        return patch
    # the mean colour remains, so that stuff can be told from the first step on
    mean = source[::8, ::8].mean((0, 1), dtype=np.float32)
    contrast = np.float32(0.1 + 0.9 * config.difficulty)
    flattened: NDArray[np.uint8] = (mean + (patch - mean) * contrast).astype(np.uint8)
    return flattened


def _vary(rng: np.random.Generator, sprite: Image.Image, config: SceneConfig) -> Image.Image:
    low, high = config.object_side
    side = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    angle = rng.uniform(-30, 30) * config.difficulty
    stretch = 1 + rng.uniform(-0.15, 0.15) * config.difficulty
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    size = (max(8, round(side * stretch)), max(8, round(side / stretch)))
    premultiplied = sprite.convert("RGBa").resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    if abs(angle) > 1:
        premultiplied = premultiplied.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    varied = premultiplied.convert("RGBA")
    pixels = np.asarray(varied).copy()
    gain = 1 + (rng.random(3) - 0.5) * 0.3 * config.difficulty
    offset = (rng.random() - 0.5) * 50 * config.difficulty
    pixels[..., :3] = np.clip(pixels[..., :3] * gain + offset, 0, 255)
    return Image.fromarray(pixels)


def _place(rng: np.random.Generator, size: tuple[int, int], config: SceneConfig) -> tuple[int, int]:
    """Upper left corner; an object may leave the picture by a tenth of its side."""

    def along(length: int) -> int:
        slack = config.side - length
        if slack <= 0:
            return slack // 2
        margin = 0.1 * length * config.difficulty
        return int(rng.uniform(-margin, slack + margin))

    return along(size[0]), along(size[1])


def _disturb(rng: np.random.Generator, canvas: Image.Image, config: SceneConfig) -> NDArray[np.uint8]:
    if rng.random() < 0.3 * config.difficulty:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    pixels = np.asarray(canvas, np.float32)
    gain = 1 + (rng.random() - 0.5) * 0.4 * config.difficulty
    grain = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(0, 6) * config.difficulty)
    return np.clip((pixels - 128) * np.float32(gain) + 128 + grain, 0, 255).astype(np.uint8)


def batch(
    source: SceneSource, indices: Sequence[int], config: SceneConfig
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (B, 3, side, side) and labels (B, side, side) of several scenes."""
    scenes = [source.scene(index, config) for index in indices]
    images = np.stack([scene.image for scene in scenes]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images), np.stack([scene.labels for scene in scenes])
