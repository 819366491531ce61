"""The words of the emoji scenes: 72 things drawn by several artists, 9 kinds of stuff, and which of them are new.

A *seen* class has masks in EBSeg training; a *new* one occurs only in image–text pairs, as CLIP sees the world. Every
third thing is new; all stuff is seen.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EmojiClass:
    """One class of the emoji scenes."""

    name: str
    emoji: str | None
    """The character that artists draw; None for stuff, which is textured."""
    seen: bool


_THINGS = """
    dog 🐕, fox 🦊, cat 🐈, tiger 🐅, horse 🐎, zebra 🦓, cow 🐄, pig 🐖, sheep 🐑, giraffe 🦒, elephant 🐘, rabbit 🐇,
    bear 🐻, panda 🐼, rooster 🐓, penguin 🐧, owl 🦉, flamingo 🦩, frog 🐸, turtle 🐢, octopus 🐙, crab 🦀, snail 🐌,
    butterfly 🦋, ladybug 🐞, rose 🌹, sunflower 🌻, cactus 🌵, grapes 🍇, watermelon 🍉, lemon 🍋, banana 🍌,
    pineapple 🍍, apple 🍎, strawberry 🍓, tomato 🍅, carrot 🥕, corn 🌽, broccoli 🥦, mushroom 🍄, croissant 🥐,
    hamburger 🍔, pizza 🍕, doughnut 🍩, birthday cake 🎂, bus 🚌, fire engine 🚒, tractor 🚜, bicycle 🚲, airplane ✈️,
    helicopter 🚁, rocket 🚀, sailboat ⛵, umbrella ☂️, guitar 🎸, trumpet 🎺, soccer ball ⚽, basketball 🏀, balloon 🎈,
    telephone ☎️, laptop 💻, television 📺, camera 📷, light bulb 💡, key 🔑, hammer 🔨, bed 🛏️, backpack 🎒, crown 👑,
    top hat 🎩, trophy 🏆, bell 🔔
"""

STUFF_NAMES = ("sky", "grass", "water", "sand", "wood", "brick wall", "snow", "road", "leaves")

NEAR_CLASSES: tuple[tuple[str, ...], ...] = (
    ("dog", "fox", "cat", "tiger"),
    ("horse", "zebra", "cow", "giraffe"),
    ("bear", "panda"),
    ("apple", "tomato", "strawberry"),
    ("lemon", "banana", "corn"),
    ("bus", "fire engine", "tractor"),
    ("airplane", "helicopter", "rocket"),
    ("soccer ball", "basketball", "balloon"),
    ("laptop", "television", "camera"),
    ("crown", "top hat", "trophy", "bell"),
    ("sky", "water", "snow"),
    ("grass", "leaves"),
)
"""Groups that a reader expects to be confused; `bench accuracy` reports how often they are."""


def _things() -> tuple[EmojiClass, ...]:
    pairs = [entry.strip().rsplit(" ", 1) for entry in _THINGS.split(",")]
    return tuple(EmojiClass(name=name, emoji=emoji, seen=index % 3 != 2) for index, (name, emoji) in enumerate(pairs))


THINGS: tuple[EmojiClass, ...] = _things()
STUFF: tuple[EmojiClass, ...] = tuple(EmojiClass(name=name, emoji=None, seen=True) for name in STUFF_NAMES)
CLASSES: tuple[EmojiClass, ...] = THINGS + STUFF
"""Index in this tuple = value in a label map: things first, then stuff."""
CLASS_NAMES: tuple[str, ...] = tuple(each.name for each in CLASSES)
