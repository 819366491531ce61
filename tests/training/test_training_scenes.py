"""Scenes: a function of (seed, split, index), with truth that fits the picture."""

from __future__ import annotations

import numpy as np
import pytest
from ebseg_deploy.errors import InputError
from ebseg_deploy.training.emoji_classes import CLASS_NAMES, CLASSES, NEAR_CLASSES, STUFF, THINGS
from ebseg_deploy.training.scenes import SceneConfig, SceneSource, batch, compose
from ebseg_deploy.training.sprites import code_points
from ebseg_deploy.training.textures import paint, texture_bank
from paper_sprites import paper_scenes, paper_sprites

PLAIN = SceneConfig(side=128, objects=(2, 3), object_side=(30, 60), difficulty=0.0)


def test_classes() -> None:
    assert len(THINGS) == 72
    assert sum(thing.seen for thing in THINGS) == 48
    assert all(stuff.seen for stuff in STUFF)
    assert len(set(CLASS_NAMES)) == len(CLASSES) == 81
    assert {name for group in NEAR_CLASSES for name in group} <= set(CLASS_NAMES)
    assert len({thing.emoji for thing in THINGS}) == 72


def test_code_points_with_and_without_the_variation_selector() -> None:
    assert code_points("✈️") == ("2708-fe0f", "2708")
    assert code_points("🐕") == ("1f415-fe0f", "1f415")


def test_a_scene_is_the_same_every_time_and_in_any_order() -> None:
    again = SceneSource(sprites=paper_sprites(), split="train")
    images, labels = batch(paper_scenes(), [3, 1], SceneConfig(side=128))
    scene = again.scene(1, SceneConfig(side=128))
    np.testing.assert_array_equal(images[1].transpose(1, 2, 0), scene.image)
    np.testing.assert_array_equal(labels[1], scene.labels)


def test_splits_and_seeds_differ() -> None:
    scenes = [
        paper_scenes("train").scene(0, PLAIN),
        paper_scenes("test").scene(0, PLAIN),
        SceneSource(sprites=paper_sprites(), split="train", seed=1).scene(0, PLAIN),
    ]
    assert len({scene.image.tobytes() for scene in scenes}) == 3


def test_truth_fits_the_picture() -> None:
    """At difficulty 0 an object has its sprite's own colour, wherever the truth says it is."""
    sprites = paper_sprites()
    checked = 0
    for index in range(6):
        scene = paper_scenes().scene(index, PLAIN)
        for thing in np.unique(scene.labels[scene.labels < len(THINGS)]):
            colour = sprites.pixels[0, thing, 56, 30, :3]
            shown = scene.image[scene.labels == thing].astype(int)
            near = (np.abs(shown - colour).max(1) <= 12).mean()
            assert near > 0.85, (index, CLASS_NAMES[thing])  # the rest is the smooth outline
            checked += 1
    assert checked >= 10


def test_every_pixel_is_labelled_and_only_allowed_things_occur() -> None:
    allowed = (4, 9)
    config = SceneConfig(side=128, things=allowed)
    _, labels = batch(paper_scenes(), range(8), config)
    things = set(np.unique(labels[labels < len(THINGS)]).tolist())
    assert things == set(allowed)
    assert labels.max() < len(CLASSES)


@pytest.mark.parametrize("count", [1, 4])
def test_number_of_objects(count: int) -> None:
    config = SceneConfig(side=256, objects=(count, count), object_side=(30, 40), difficulty=0.0)
    rng = np.random.default_rng(0)
    scene = compose(rng, paper_sprites(), paper_scenes().textures, config)
    things = np.unique(scene.labels[scene.labels < len(THINGS)])
    assert 1 <= len(things) <= count


def test_difficulty_zero_is_almost_flat() -> None:
    config = SceneConfig(side=128, objects=(0, 0), difficulty=0.0)
    flat = paper_scenes().scene(2, config)
    hard = paper_scenes().scene(2, SceneConfig(side=128, objects=(0, 0)))
    kind = np.bincount(flat.labels.ravel()).argmax()
    assert flat.image[flat.labels == kind].std(0).max() < 0.5 * hard.image[hard.labels == kind].std(0).max()


@pytest.mark.parametrize("stuff", [each.name for each in STUFF])
def test_textures_vary_and_are_coloured_by_their_class(stuff: str) -> None:
    rng = np.random.default_rng(3)
    first, second = paint(stuff, rng, 128), paint(stuff, rng, 128)
    assert first.shape == (128, 128, 3)
    assert not np.array_equal(first, second)
    assert np.abs(first.mean((0, 1)) - second.mean((0, 1))).max() < 45
    np.testing.assert_array_equal(first, paint(stuff, np.random.default_rng(3), 128))


def test_texture_bank_has_every_stuff() -> None:
    assert texture_bank(0, 2, 128).shape == (len(STUFF), 2, 128, 128, 3)


def test_an_unknown_artist_is_named() -> None:
    with pytest.raises(InputError, match="'dali' is unknown; choose from discs, rings"):
        paper_sprites().only(["dali"])
