"""Sprites cut from paper: plain shapes in plain colours, so that no test needs the fetched packages."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from ebseg_deploy.model.config import ClipConfig, EbsegConfig, SamConfig
from ebseg_deploy.training.emoji_classes import THINGS
from ebseg_deploy.training.scenes import SceneSource
from ebseg_deploy.training.sprites import SPRITE_SIDE, SpriteBank

TINY = EbsegConfig(
    name="ebseg-tiny",
    clip=ClipConfig(
        image_size=128,
        patch=32,
        width=32,
        heads=2,
        layers=2,
        embedding_dim=16,
        text_width=16,
        text_heads=2,
        text_layers=1,
        vocabulary_size=49408,
    ),
    sam=SamConfig(image_size=128, width=16, depth=4, heads=2, window=4, global_blocks=(0, 1, 2, 3)),
    clip_input_scale=1.0,
    plain_blocks=0,
    surgery_blocks=0,
    fusion_layers=(1, 2, 2),
    alpha=0.1,
    beta=0.3,
    gamma=0.6,
    queries=10,
    hidden_dim=32,
    mask_dim=32,
    heads=2,
    decoder_layers=1,
    decoder_ffn=32,
    pixel_layers=1,
    pixel_ffn=32,
    norm_groups=4,
    training_classes=57,
)
"""Everything of EBSeg, for pictures of 128x128, in a fraction of a second."""


@lru_cache(maxsize=1)
def paper_sprites() -> SpriteBank:
    """Two 'artists': discs and rings, each thing in a colour of its own."""
    rows, columns = np.mgrid[0:SPRITE_SIDE, 0:SPRITE_SIDE] - (SPRITE_SIDE - 1) / 2
    radius = np.hypot(rows, columns)
    shapes = (radius < 55, (radius < 55) & (radius > 20))
    colours = np.random.default_rng(1).integers(0, 256, (len(THINGS), 3))
    pixels = np.zeros((2, len(THINGS), SPRITE_SIDE, SPRITE_SIDE, 4), np.uint8)
    for artist, shape in enumerate(shapes):
        pixels[artist, :, shape, :3] = colours
        pixels[artist, :, shape, 3] = 255
    return SpriteBank(artists=("discs", "rings"), names=tuple(thing.name for thing in THINGS), pixels=pixels)


@lru_cache(maxsize=3)
def paper_scenes(split: str = "train", *, unnamed: int = 0) -> SceneSource:
    """Scenes of them; `unnamed` squares come after the things."""
    bank = paper_sprites()
    squares = np.full((2, unnamed, SPRITE_SIDE, SPRITE_SIDE, 4), 255, np.uint8)
    squares[..., :3] = np.random.default_rng(2).integers(0, 256, (2, unnamed, 1, 1, 3))
    names = (*bank.names, *(f"unnamed {i}" for i in range(unnamed)))
    bank = SpriteBank(artists=bank.artists, names=names, pixels=np.concatenate((bank.pixels, squares), axis=1))
    return SceneSource(sprites=bank, split=split)  # type: ignore[arg-type]
