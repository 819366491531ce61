"""Training sets: emoji scenes of seen classes, and folders of pictures with label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ebseg_deploy.errors import InputError
from ebseg_deploy.training.emoji_classes import CLASSES
from ebseg_deploy.training.matching import NO_NAME
from ebseg_deploy.training.samples import CropConfig, EmojiSamples, FolderSamples, masks_of
from ebseg_deploy.training.scenes import SceneConfig
from paper_sprites import paper_scenes
from PIL import Image

NAMES = ("cat", "dog", "sky")


def test_emoji_samples_show_no_new_class() -> None:
    samples = EmojiSamples(paper_scenes(), SceneConfig(side=128))
    assert samples.names == tuple(each.name for each in CLASSES if each.seen)
    given = samples.batch(3, 4)
    assert given.images.shape == (4, 3, 128, 128)
    assert given.images.dtype == torch.uint8
    for target in given.targets:
        assert len(target.classes) >= 2
        assert target.masks.sum(0).eq(1).all()  # every pixel is of one seen class: nothing was left out as new
    again = samples.batch(3, 4)
    assert torch.equal(given.images, again.images)
    assert not torch.equal(given.images, samples.batch(4, 4).images)


def test_unnamed_objects_have_masks_of_their_own_and_no_class() -> None:
    named = EmojiSamples(paper_scenes(unnamed=3), SceneConfig(side=128)).batch(0, 6)
    assert all((target.classes >= 0).all() for target in named.targets)
    mixed = EmojiSamples(paper_scenes(unnamed=3), SceneConfig(side=128, unnamed=0.5)).batch(0, 6)
    classes = torch.cat([target.classes for target in mixed.targets])
    assert (classes == NO_NAME).any()
    assert ((classes >= 0) & (classes < 48)).any()
    for target in mixed.targets:
        assert target.masks.sum(0).eq(1).all()  # no pixel is of two objects, none is lost
        assert target.masks.flatten(1).any(1).all()
    alone = EmojiSamples(paper_scenes(unnamed=3), SceneConfig(side=128, unnamed=1.0)).batch(0, 6)
    things = torch.cat([target.classes for target in alone.targets])
    assert not ((things >= 0) & (things < 48)).any()  # stuff and unnamed objects alone


def test_scenes_without_unnamed_objects_are_what_they_were() -> None:
    """The same scene from a bank with more sprites: the test split does not depend on what training adds."""
    plain, more = paper_scenes("test"), paper_scenes("test", unnamed=3)
    for index in range(3):
        one, other = (source.scene(index, SceneConfig(side=128)) for source in (plain, more))
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.labels, other.labels)


def test_masks_of_leaves_out_ignored_pixels() -> None:
    labels = torch.tensor([[0, 0, 2], [255, 2, 2]])
    target = masks_of(labels, 3)
    assert target.classes.tolist() == [0, 2]
    assert target.masks.tolist() == [[[1, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 1, 1]]]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, labels = tmp_path / "images", tmp_path / "labels"
    for place, sub in enumerate(("a", "a", "b")):
        for root in (images, labels):
            (root / sub).mkdir(parents=True, exist_ok=True)
        truth = np.full((40, 60), place, np.uint8)
        truth[:5] = 255
        truth[-15:] = (place + 1) % 3
        colours = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
        Image.fromarray(truth).save(labels / sub / f"{place}.png")
        Image.fromarray(colours[np.where(truth == 255, 0, truth)]).save(images / sub / f"{place}.png")
    return images, labels


def test_folder_crops_keep_picture_and_truth_together(folders: tuple[Path, Path]) -> None:
    samples = FolderSamples(*folders, NAMES, CropConfig(size=64, shortest=(32, 48)))
    given = samples.batch(0, 6)
    assert given.images.shape == (6, 3, 64, 64)
    for image, valid, target in zip(given.images, given.valid_size, given.targets, strict=True):
        rows, columns = valid.tolist()
        assert rows <= 48
        assert image[:, rows:].eq(0).all()
        for cls, mask in zip(target.classes.tolist(), target.masks, strict=True):
            assert mask[rows:].eq(0).all()
            assert mask[:, columns:].eq(0).all()
            inside = image.float()[:, mask.bool()].mean(1)
            assert inside.argmax().item() == cls


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("empty", "no .jpg or .png"),
        ("missing", "no label map"),
        ("size", "its picture is"),
        ("value", "value 9, wanted below 3"),
        ("folder", "not both are folders"),
    ],
)
def test_faults_are_named(folders: tuple[Path, Path], fault: str, message: str) -> None:
    images, labels = folders
    if fault == "empty":
        for path in images.rglob("*.png"):
            path.unlink()
    elif fault == "missing":
        (labels / "b" / "2.png").unlink()
    elif fault == "size":
        for path in labels.rglob("*.png"):
            Image.new("L", (9, 9)).save(path)
    elif fault == "value":
        for path in labels.rglob("*.png"):
            Image.new("L", (60, 40), 9).save(path)
    elif fault == "folder":
        labels = labels / "nowhere"
    with pytest.raises(InputError, match=message):
        FolderSamples(images, labels, NAMES, CropConfig(size=64, shortest=(32, 48))).batch(0, 2)
