"""Objects that stage 3 teaches to cut out and not to name: hundreds of other emoji, none of them a class.

The published model's SAM has been taught masks of everything before it meets EBSeg; nano's has not, and what learns
masks from 48 drawn things by two artists cuts out those best. Whatever shows a part or a relative of a *new* class is
left out, and so are all animals and plants: no mask of a new class, nor of its likeness, is ever seen.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from .emoji_classes import THINGS, EmojiClass
from .emoji_packages import FLUENT, NOTO, read_members
from .sprites import code_points

UNNAMED = 128
"""Label of the first unnamed object of a scene; the next one's is greater by one."""

CATEGORIES = ("Activities", "Food & Drink", "Objects", "Smileys & Emotion", "Travel & Places")
"""Noto's own; the others hold animals, people in six skin tones, flags and signs."""

_RELATIVES = """
    8 baseball bell bellhop bowling cake camera cat crown cupcake fax football goal hammer leafy melon phone pick
    sandwich shortcake softball telephone tennis tropical umbrella volleyball
"""
RELATIVES = frozenset(_RELATIVES.split())
"""Words of the names of emoji that show a new class, a part of one, or what may be taken for it."""


def unnamed_objects(cache: Path) -> tuple[EmojiClass, ...]:
    """The emoji that both training artists drew, in Noto's order; some 700.

    Args:
        cache: folder of the fetched tarballs, present and whole.
    """
    members = read_members(cache / NOTO.file_name, ("metadata.json", "chars.json").__contains__)
    categories = json.loads(members["metadata.json"])["categories"]
    points: dict[str, list[str]] = {}
    for key, name in json.loads(members["chars.json"]).items():
        points.setdefault(name, []).append(key.removesuffix("-fe0f"))
    with tarfile.open(cache / FLUENT.file_name, "r:gz") as archive:
        by_fluent = {Path(path).stem.removesuffix("-fe0f") for path in archive.getnames() if path.endswith(".webp")}
    named = {key for thing in THINGS for key in code_points(thing.emoji or "")}
    found = []
    for category in CATEGORIES:
        for name in categories[category]:
            key = next((key for key in points.get(name, ()) if "-" not in key and key in by_fluent), None)
            if key is not None and key not in named and not RELATIVES & set(name.split("-")):
                found.append(EmojiClass(name=f"unnamed {name}", emoji=chr(int(key, 16)), seen=False))
    return tuple(found)
