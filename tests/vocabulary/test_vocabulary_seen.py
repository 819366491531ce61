"""The seen rule: equal to the published split on every class of six benchmarks, and sensible on other words."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from ebseg_deploy.runtime.class_names import BENCHMARKS, benchmark_classes
from ebseg_deploy.runtime.seen_names import is_seen, training_words, word_key, words_of
from hypothesis import given
from hypothesis import strategies as st

SPLIT = json.loads((Path(__file__).parents[1] / "goldens" / "vocabulary_split.json").read_text())
SEEN_CLASSES = {
    "voc-20": 20,
    "pascal-context-59": 51,
    "pascal-context-459": 94,
    "ade20k-150": 67,
    "ade20k-847": 115,
    "coco-stuff-171": 171,
}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_names_and_flags_of_a_benchmark(benchmark: str) -> None:
    classes = benchmark_classes(benchmark)
    golden = SPLIT[benchmark]
    names = "\n".join(entry.name for entry in classes)
    assert hashlib.sha256(names.encode()).hexdigest() == golden["names_sha256"]
    assert all(entry.seen is None for entry in classes), "the rule decides, not a flag"
    flags = [is_seen(entry.name, entry.synonyms, entry.excludes) for entry in classes]
    wanted = [flag == "1" for flag in golden["seen"]]
    wrong = [entry.name for entry, got, want in zip(classes, flags, wanted, strict=True) if got != want]
    assert wrong == []
    assert sum(flags) == SEEN_CLASSES[benchmark]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_excluded_word_is_needed(benchmark: str) -> None:
    for entry in benchmark_classes(benchmark):
        assert not entry.excludes or is_seen(entry.name, entry.synonyms), f"{entry.name}: excludes without effect"
        for word in entry.excludes:
            assert word_key(word) in words_of(entry.name, entry.synonyms), f"{entry.name} does not suggest {word}"


@pytest.mark.parametrize(
    "name",
    ["cat", "Cats", "KITTENS", "hot-dog", "hotdogs", "Wine Glass", "wine_glasses", "women", "buses", "horses", "ties"],
)
def test_words_the_training_set_taught(name: str) -> None:
    assert is_seen(name)


@pytest.mark.parametrize(
    "name", ["fox", "red fox", "wild cat", "catfish", "kit", "bust", "carp", "tiger", "drone", "barn", "猫", "bea"]
)
def test_words_it_did_not_teach(name: str) -> None:
    assert not is_seen(name)


def test_one_word_of_several_is_enough() -> None:
    assert is_seen("puma, cat")
    assert is_seen("hound", ["dog"])
    assert not is_seen("hound")


def test_excluded_words_do_not_count() -> None:
    assert not is_seen("step, stair", excludes=["stair"])
    assert is_seen("house, building", excludes=["house"])


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("bus", "buses"),
        ("box", "boxes"),
        ("horse", "horses"),
        ("vase", "vases"),
        ("dish", "dishes"),
        ("bench", "benches"),
        ("potato", "potatoes"),
        ("shoe", "shoes"),
        ("kitty", "kitties"),
        ("cookie", "cookies"),
        ("tie", "ties"),
        ("knife", "knives"),
        ("lens", "lenses"),
        ("person", "people"),
        ("fireman", "firemen"),
        ("tv", "TVs"),
        ("glass", "glasses"),
        ("wine glass", "Wine-Glasses"),
    ],
)
def test_singular_and_plural_share_a_key(one: str, many: str) -> None:
    assert word_key(one) == word_key(many)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kit", "kite"),
        ("car", "care"),
        ("pin", "pine"),
        ("bus", "bu"),
        ("cap", "cape"),
        ("glass", "glas"),
        ("man", "men's"),
    ],
)
def test_other_words_have_another_key(one: str, other: str) -> None:
    assert word_key(one) != word_key(other)


@given(st.text(st.characters(categories=["Ll"], max_codepoint=0x17F, exclude_characters="ſŉı"), min_size=1))
def test_case_hyphens_and_spaces_do_not_count(word: str) -> None:
    assert word_key(f"red {word}") == word_key(f" RED-{word.upper()} ") == word_key(f"Red_{word}")


def test_training_words_are_those_of_coco_stuff() -> None:
    keys = training_words()
    assert all(word_key(entry.name) in keys for entry in benchmark_classes("coco-stuff-171"))
    assert "" not in keys
