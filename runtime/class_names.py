"""Class names as people give them: on the command line, in a text or JSON file, or as a benchmark's name."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import msgspec

from ..contract import Record
from ..errors import VocabularyError

BENCHMARKS = ("voc-20", "pascal-context-59", "pascal-context-459", "ade20k-150", "ade20k-847", "coco-stuff-171")
MAX_CLASSES = 65535
"""A label map is at most uint16, and 65535 is left for "no label"."""
LISTED = 10
"""Names that an error lists at most."""


class ClassEntry(Record, frozen=True, kw_only=True):
    """One class before its name is encoded."""

    name: str
    """Goes into the prompts as it stands, commas included."""
    synonyms: tuple[str, ...] = ()
    """Further words for it. They are not encoded; they count for the seen rule."""
    excludes: tuple[str, ...] = ()
    """Words the name suggests that do not count for the seen rule."""
    seen: bool | None = None
    """Whether it was taught in training; None lets the seen rule decide."""


class Benchmark(Record, frozen=True, kw_only=True):
    """A benchmark's classes, in the order of its label files (`runtime/vocabularies/*.json`)."""

    schema_version: int
    name: str
    title: str
    source: str
    classes: tuple[str | ClassEntry, ...]


def classes_from_text(text: str) -> tuple[ClassEntry, ...]:
    """Names from one line, separated by commas: "cat, red fox".

    Raises:
        VocabularyError: nothing between two commas, or what `check_classes` refuses.
    """
    if not text.strip():
        raise _empty("--classes")
    return check_classes((ClassEntry(name=name) for name in text.split(",")), where="classes")


def read_classes(path: str | os.PathLike[str]) -> tuple[ClassEntry, ...]:
    """Names from a file.

    Args:
        path: `*.json`: a list of names, or of objects with `name` and, if wanted, `synonyms`, `excludes`, `seen`.
            Anything else is text in UTF-8, one name a line: commas belong to the name; blank lines and lines that
            begin with # do not count.

    Raises:
        VocabularyError: the file cannot be read or decoded, or what `check_classes` refuses.
    """
    path = Path(path)
    if path.suffix.lower() == ".safetensors":
        raise VocabularyError(
            f"class file {path}: a vocabulary, encoded already", cure="use it as it is, or give a text or JSON file"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VocabularyError(
            f"class file {path}: {error.strerror}", cure="give a text or JSON file that can be read"
        ) from error
    where = f"class file {path}"
    if path.suffix.lower() == ".json":
        return check_classes(_from_json(data, where), where=where)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{where}: byte {error.start} is not UTF-8", cure="save it as UTF-8 text") from error
    names = (line for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return check_classes((ClassEntry(name=name) for name in names), where=where)


def _from_json(data: bytes, where: str) -> Iterable[ClassEntry]:
    try:
        decoded = msgspec.json.decode(data, type=list[str | ClassEntry])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VocabularyError(
            f"{where}: {error}", cure='write a JSON list of names or of {"name": …, "synonyms": […], "seen": true}'
        ) from error
    return [ClassEntry(name=each) if isinstance(each, str) else each for each in decoded]


@lru_cache(maxsize=len(BENCHMARKS))
def load_benchmark(name: str) -> Benchmark:
    """One of the benchmarks that come with the package.

    Raises:
        VocabularyError: no benchmark of that name.
    """
    if name not in BENCHMARKS:
        close = get_close_matches(name, BENCHMARKS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise VocabularyError(f"no benchmark {name!r}", cure=f"{hint}there are {', '.join(BENCHMARKS)}")
    data = files(__package__).joinpath("vocabularies", f"{name}.json").read_bytes()
    return msgspec.json.decode(data, type=Benchmark)


@lru_cache(maxsize=len(BENCHMARKS))
def benchmark_classes(name: str) -> tuple[ClassEntry, ...]:
    """The classes of one of BENCHMARKS, in label order.

    Raises:
        VocabularyError: no benchmark of that name.
    """
    return tuple(ClassEntry(name=each) if isinstance(each, str) else each for each in load_benchmark(name).classes)


def check_classes(entries: Iterable[ClassEntry], *, where: str = "vocabulary") -> tuple[ClassEntry, ...]:
    """Trim the names and refuse what cannot be a vocabulary.

    Args:
        entries: the classes, in label order.
        where: what to call them in errors.

    Raises:
        VocabularyError: no class, more than 65535, a name without a visible character or with a control character,
            or names that differ in case and spaces alone.
    """
    checked = []
    for number, entry in enumerate(entries, start=1):
        name = entry.name.strip()
        kinds = {unicodedata.category(letter) for letter in name}
        if all(kind[0] in "ZC" for kind in kinds):
            raise VocabularyError(f"{where}: name {number} is blank ({entry.name!r})", cure="remove it or write a name")
        if kinds & {"Cc", "Cs"}:
            raise VocabularyError(
                f"{where}: name {number}, {name!r}, has a control character", cure="give each class a name of its own"
            )
        checked.append(entry if name == entry.name else msgspec.structs.replace(entry, name=name))
    if not checked:
        raise _empty(where)
    if len(checked) > MAX_CLASSES:
        raise VocabularyError(
            f"{where}: {len(checked)} classes, at most {MAX_CLASSES} fit a 16-bit label map", cure="split the list"
        )
    refuse_duplicates([entry.name for entry in checked], where=where)
    return tuple(checked)


def refuse_duplicates(names: Iterable[str], *, where: str, cure: str = "keep one of each") -> None:
    """Raise VocabularyError if two names differ in case and spaces alone; the error lists them."""
    counts = Counter(name_key(name) for name in names)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        more = f" and {len(twice) - LISTED} more" if len(twice) > LISTED else ""
        listed = ", ".join(repr(name) for name in twice[:LISTED])
        raise VocabularyError(f"{where}: the same name more than once: {listed}{more}", cure=cure)


def name_key(name: str) -> str:
    """What two spellings of the same name have in common: case and white space do not count."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def _empty(where: str) -> VocabularyError:
    return VocabularyError(f"{where}: no class names", cure="give at least one")
