"""The example scenes: whole, and what the fetched sprites give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.benchmarks.labelled_sets import read_labels
from ebseg_deploy.benchmarks.scenes import FOLDER, NAMES, example_scenes, scene_classes
from ebseg_deploy.benchmarks.scenes.make_scenes import write_scenes
from ebseg_deploy.runtime.picture import read_picture
from ebseg_deploy.training.emoji_classes import CLASSES
from ebseg_deploy.training.emoji_packages import PACKAGES, default_cache


def test_scenes_are_whole() -> None:
    classes = scene_classes()
    assert [(each.name, each.seen) for each in classes] == [(each.name, each.seen) for each in CLASSES]
    scenes = example_scenes()
    assert len(scenes) == len(NAMES)
    for scene in scenes:
        labels = read_labels(scene.labels)
        assert read_picture(scene.picture).shape == (256, 256, 3)
        assert labels.shape == (256, 256)
        assert labels.max() < len(classes)
        assert len(np.unique(labels)) >= 3


def test_scenes_come_from_the_sprites(tmp_path: Path) -> None:
    if not all((default_cache() / package.file_name).is_file() for package in PACKAGES):
        pytest.skip("the sprites are not here; `ebseg train fetch-data` fetches them")
    write_scenes(tmp_path)
    for path in sorted(tmp_path.glob("*.png")):
        made, committed = (read_picture(file).astype(int) for file in (path, FOLDER / path.name))
        # another version of Pillow or resvg may round otherwise
        assert np.abs(made - committed).mean() < 0.5, path.name
