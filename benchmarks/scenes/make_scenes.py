"""Writes the example scenes anew from the fetched sprites: `python -m ebseg_deploy.benchmarks.scenes.make_scenes`."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from ...runtime.palette import class_colours
from ...training.emoji_classes import CLASSES
from ...training.scenes import SceneConfig, SceneSource
from ...training.sprites import TRAIN_ARTISTS, UNSEEN_ARTIST, load_sprites
from . import FOLDER, NAMES


def write_scenes(folder: Path, cache: Path | None = None) -> None:
    """Write pictures, label maps and classes to a folder."""
    sources = {
        "test": SceneSource(sprites=load_sprites(cache, artists=TRAIN_ARTISTS), split="test"),
        "unseen": SceneSource(sprites=load_sprites(cache, artists=(UNSEEN_ARTIST,)), split="test"),
    }
    for name in NAMES:
        kind, _, index = name.partition("-")
        scene = sources[kind].scene(int(index), SceneConfig())
        Image.fromarray(scene.image).save(folder / f"{name}.png", optimize=True)
        labels = Image.fromarray(scene.labels)
        labels.putpalette(class_colours(len(CLASSES)).tobytes())
        labels.save(folder / f"{name}.labels.png", optimize=True)
    classes = [{"name": each.name, "seen": each.seen} for each in CLASSES]
    (folder / "classes.json").write_text(json.dumps(classes, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write_scenes(FOLDER)
