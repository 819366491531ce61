"""Five held-out emoji scenes with their truth, for the demo and for tests: no sprites need to be fetched for them.

They are the first four of the test split by the training artists, and the first by the unseen one; not chosen. Label
maps hold indices into `classes.json`. Sprites: Fluent Emoji (Microsoft, MIT), Noto Emoji (Google, Apache-2.0);
`unseen-0` Twemoji (Twitter and contributors, CC BY 4.0, recoloured and composed). `make_scenes.py` made them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ...runtime.class_names import ClassEntry

FOLDER = Path(__file__).parent
NAMES = ("test-0", "test-1", "test-2", "test-3", "unseen-0")


@dataclass(frozen=True, kw_only=True)
class ExampleScene:
    """One scene."""

    name: str
    picture: Path
    """256x256 RGB PNG."""
    labels: Path
    """Palette PNG of the same size; each value an index into `scene_classes()`."""


def example_scenes() -> tuple[ExampleScene, ...]:
    """All of them."""
    return tuple(
        ExampleScene(name=name, picture=FOLDER / f"{name}.png", labels=FOLDER / f"{name}.labels.png") for name in NAMES
    )


def scene_classes() -> tuple[ClassEntry, ...]:
    """The emoji scenes' classes in label order, with their seen flags."""
    return tuple(ClassEntry(**entry) for entry in json.loads((FOLDER / "classes.json").read_text()))
