"""What each variant saw masks of: the names that its bundles carry for the seen rule."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .config import EBSEG_NANO, EbsegConfig

_EMOJI_SCENES = """
    dog, fox, tiger, horse, cow, pig, giraffe, elephant, bear, panda, penguin, owl, frog, turtle, crab, snail,
    ladybug, rose, cactus, grapes, lemon, banana, apple, strawberry, carrot, corn, mushroom, croissant, pizza,
    doughnut, bus, fire engine, bicycle, airplane, rocket, sailboat, guitar, trumpet, basketball, balloon,
    laptop, television, light bulb, key, bed, backpack, top hat, trophy, sky, grass, water, sand, wood,
    brick wall, snow, road, leaves
"""
"""The emoji scenes' seen things, and all of their stuff."""

TRAINING_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {EBSEG_NANO.name: tuple(name.strip() for name in _EMOJI_SCENES.split(","))}
)
"""Variant -> the classes it was trained on. The others were trained on COCO-Stuff."""


def training_names(config: EbsegConfig) -> tuple[str, ...] | None:
    """Classes that had masks in a variant's training; None for COCO-Stuff's."""
    return TRAINING_NAMES.get(config.name)
