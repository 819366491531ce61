"""The names nano's bundles carry are the training's own."""

from __future__ import annotations

from ebseg_deploy.model.config import EBSEG_B, EBSEG_L, EBSEG_NANO
from ebseg_deploy.model.training_names import training_names
from ebseg_deploy.runtime.seen_names import is_seen
from ebseg_deploy.training.emoji_classes import CLASSES


def test_nano_carries_the_seen_classes_of_the_emoji_scenes() -> None:
    names = training_names(EBSEG_NANO)
    assert names == tuple(each.name for each in CLASSES if each.seen)
    assert len(names) == EBSEG_NANO.training_classes


def test_the_rule_gives_the_flags_of_the_training() -> None:
    """By their names alone: no new class has a seen one's word."""
    names = training_names(EBSEG_NANO)
    wrong = [each.name for each in CLASSES if is_seen(each.name, training_names=names) != each.seen]
    assert wrong == []


def test_the_published_variants_were_trained_on_coco_stuff() -> None:
    assert training_names(EBSEG_B) is None
    assert training_names(EBSEG_L) is None
