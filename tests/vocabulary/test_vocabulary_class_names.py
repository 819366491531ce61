"""Class names from the command line, from files and from benchmarks; what is refused, and with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ebseg_deploy.errors import VocabularyError
from ebseg_deploy.runtime.class_names import (
    BENCHMARKS,
    MAX_CLASSES,
    ClassEntry,
    benchmark_classes,
    check_classes,
    classes_from_text,
    load_benchmark,
    read_classes,
)


def names(entries: tuple[ClassEntry, ...]) -> list[str]:
    return [entry.name for entry in entries]


def refused(*given: str) -> str:
    with pytest.raises(VocabularyError) as caught:
        check_classes(ClassEntry(name=name) for name in given)
    assert "\n" not in str(caught.value)
    assert caught.value.cure
    return str(caught.value)


def test_text_splits_at_commas_and_trims() -> None:
    assert names(classes_from_text(" cat,red fox ,  Sea lion")) == ["cat", "red fox", "Sea lion"]


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_text(text: str) -> None:
    with pytest.raises(VocabularyError, match="no class names; give at least one"):
        classes_from_text(text)


def test_nothing_between_two_commas() -> None:
    with pytest.raises(VocabularyError, match=r"name 2 is blank \(''\)"):
        classes_from_text("cat,,dog")


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeff# animals\r\ncat\r\n\r\n  road, route \n\t# more\nC# book\n".encode())
    assert names(read_classes(path)) == ["cat", "road, route", "C# book"]


def test_json_file(tmp_path: Path) -> None:
    path = tmp_path / "words.JSON"
    path.write_text(json.dumps(["cat", {"name": "hound", "synonyms": ["dog"]}, {"name": "fox", "seen": True}]))
    assert read_classes(path) == (
        ClassEntry(name="cat"),
        ClassEntry(name="hound", synonyms=("dog",)),
        ClassEntry(name="fox", seen=True),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "truncated"),
        ('["cat"', "truncated"),
        ("cat\ndog", "malformed"),
        ('{"cat": 1}', "Expected `array`"),
        ('["cat", 3]', r"at `\$\[1\]`"),
        ('[{"synonyms": []}]', "missing required field `name`"),
        ('[{"name": "cat", "colour": "red"}]', "unknown field `colour`"),
        ('[{"name": "cat", "seen": "yes"}]', r"at `\$\[0\]\.seen`"),
        ("[]", "no class names"),
        ('["cat", " "]', "name 2 is blank"),
    ],
)
def test_json_file_with_a_fault(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(content)
    with pytest.raises(VocabularyError, match=message) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="No such file"):
        read_classes(tmp_path / "none.txt")
    with pytest.raises(VocabularyError, match=r"words.safetensors: a vocabulary, encoded already"):
        read_classes("words.safetensors")
    with pytest.raises(VocabularyError, match="directory"):
        read_classes(tmp_path)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(VocabularyError, match="byte 3 is not UTF-8; save it as UTF-8 text"):
        read_classes(latin)
    comments = tmp_path / "comments.txt"
    comments.write_text("# nothing\n\n")
    with pytest.raises(VocabularyError, match=r"comments.txt: no class names"):
        read_classes(comments)


@pytest.mark.parametrize("blank", ["", "   ", "\t\n", "\u200b", "\u3000\u00a0", "\x00"])
def test_blank_names(blank: str) -> None:
    assert "name 2 is blank" in refused("cat", blank)


@pytest.mark.parametrize("name", ["red\tfox", "red\nfox", "a\x00b", "a\ud800b"])
def test_control_characters(name: str) -> None:
    assert "control character" in refused(name)


def test_duplicates_are_listed_whatever_their_case_and_spaces() -> None:
    message = refused("Cat", "dog", "red  fox", "cat", "Red fox")
    assert "more than once: 'cat', 'red fox'; keep one of each" in message
    assert "dog" not in message


def test_many_duplicates_are_listed_in_part() -> None:
    letters = [f"name {number}" for number in range(25)]
    assert "'name 9' and 15 more" in refused(*letters, *letters)


def test_names_that_only_look_alike_are_no_duplicates() -> None:
    assert names(check_classes(ClassEntry(name=name) for name in ("cat", "cats", "Kat"))) == ["cat", "cats", "Kat"]


def test_most_classes_that_fit_a_label_map() -> None:
    many = [f"class {number}" for number in range(MAX_CLASSES + 1)]
    assert len(check_classes(ClassEntry(name=name) for name in many[:-1])) == MAX_CLASSES
    assert "65536 classes, at most 65535" in refused(*many)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_files(name: str) -> None:
    benchmark = load_benchmark(name)
    classes = benchmark_classes(name)
    assert benchmark.name == name
    assert benchmark.schema_version == 1
    assert len(classes) == int(name.rpartition("-")[2])
    assert check_classes(classes) == classes


def test_unknown_benchmark() -> None:
    with pytest.raises(VocabularyError, match=r"no benchmark 'ade20k'; did you mean ade20k-\d+\? there are voc-20, "):
        benchmark_classes("ade20k")
    with pytest.raises(VocabularyError, match="no benchmark 'xyz'; there are"):
        benchmark_classes("xyz")
