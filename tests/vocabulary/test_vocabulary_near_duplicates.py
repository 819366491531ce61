"""Which class names warn, and which do not."""

from __future__ import annotations

import time

import pytest
from ebseg_deploy.runtime.class_names import ClassEntry, benchmark_classes
from ebseg_deploy.runtime.near_duplicates import DESCRIBED, describe_pairs, near_duplicates


def pairs(*names: str) -> tuple[tuple[str, str], ...]:
    return near_duplicates([ClassEntry(name=name) for name in names])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cat", "cats"),
        ("wine glass", "wineglass"),
        ("t-shirt", "T shirt"),
        ("grey wolf", "gray wolf"),
        ("aeroplane", "airplanes"),
        ("elephant", "elefhant"),
        ("elephant", "elehpant"),
        ("elephant", "elephannt"),
        ("polar elephant", "polar elephat"),
    ],
)
def test_nearly_the_same(one: str, other: str) -> None:
    assert pairs("road", one, "sky", other) == ((one, other),)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("house", "horse"),
        ("speaker", "sneaker"),
        ("red cat", "red car"),
        ("white car", "white cat"),
        ("elephant", "elegance"),
    ],
)
def test_different_things(one: str, other: str) -> None:
    assert pairs(one, other) == ()


def test_one_class_is_the_others_synonym() -> None:
    entries = [ClassEntry(name="couch", synonyms=("sofa",)), ClassEntry(name="dog"), ClassEntry(name="Sofas")]
    assert near_duplicates(entries) == (("couch", "Sofas"),)


def test_a_synonym_of_its_own_name_is_no_pair() -> None:
    assert near_duplicates([ClassEntry(name="cat", synonyms=("cats",))]) == ()


def test_three_spellings_give_two_pairs_in_label_order() -> None:
    assert pairs("cat", "dog", "cats", "Cat's", "CATS ") == (("cat", "cats"), ("cats", "CATS "))


def test_benchmarks_of_distinct_things_are_quiet() -> None:
    assert near_duplicates(benchmark_classes("voc-20")) == ()
    assert near_duplicates(benchmark_classes("pascal-context-59")) == ()


def test_found_in_a_large_benchmark() -> None:
    found = near_duplicates(benchmark_classes("ade20k-847"))
    assert ("cage", "cages") in found
    assert ("dumbbells", "dumbbell") in found


def test_tens_of_thousands_of_names_take_seconds() -> None:
    start = time.perf_counter()
    assert pairs(*(f"specimen number {number:05d} of many" for number in range(20000))) == ()
    assert time.perf_counter() - start < 30  # comparing every pair would take an hour


def test_numbered_names_are_different_things() -> None:
    assert pairs(*(f"specimen{number}" for number in range(300))) == ()
    assert pairs("specimen 12", "specimem 12") == (("specimen 12", "specimem 12"),)


def test_the_warning_is_one_line() -> None:
    (line,) = describe_pairs([("cat", "cats")])
    assert line.startswith("'cat' and 'cats' are nearly the same class")
    assert "\n" not in line


def test_many_pairs_are_counted_rather_than_listed() -> None:
    lines = describe_pairs([(f"cat {i}", f"cats {i}") for i in range(DESCRIBED + 100)])
    assert len(lines) == DESCRIBED + 1
    assert lines[-1] == "and 100 more pairs of names are nearly the same"
