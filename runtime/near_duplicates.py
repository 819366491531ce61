"""Class names so alike that they compete for the same pixels: worth a warning, not an error."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from .class_names import ClassEntry
from .seen_names import word_key

AMERICAN_SPELLING = {
    "aeroplane": "airplane",
    "armour": "armor",
    "centre": "center",
    "colour": "color",
    "doughnut": "donut",
    "fibre": "fiber",
    "grey": "gray",
    "harbour": "harbor",
    "jewellery": "jewelry",
    "kerb": "curb",
    "mould": "mold",
    "moustache": "mustache",
    "plough": "plow",
    "pyjamas": "pajamas",
    "theatre": "theater",
    "tyre": "tire",
}
TYPO_LETTERS = 8
"""Shortest word in which one changed letter counts as a slip: below it, house/horse and speaker/sneaker abound."""

DESCRIBED = 20
"""Pairs that are warned of one by one: beyond that nobody reads, and warnings bury what else was said."""

GROUP = 8
"""Names before it that a name is compared with, in a group that shares all letters but one."""


def near_duplicates(entries: Sequence[ClassEntry]) -> tuple[tuple[str, str], ...]:
    """Pairs of classes that name nearly the same thing, in label order.

    A pair is found when the names differ in plural, hyphens, spaces or British spelling; when one class's name is
    another's synonym; or when they differ by one letter, not a digit, of a word of eight letters or more. Takes time
    linear in the number of classes.
    """
    pairs = {pair for groups in (_same_words(entries), _one_slip(entries)) for pair in groups}
    return tuple((entries[first].name, entries[second].name) for first, second in sorted(pairs))


def describe_pairs(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """A line of warning for each of the first DESCRIBED pairs, and one that counts the rest."""
    lines = [
        f"{first!r} and {second!r} are nearly the same class: each pixel goes to one of them, almost by chance"
        for first, second in pairs[:DESCRIBED]
    ]
    if len(pairs) > DESCRIBED:
        lines.append(f"and {len(pairs) - DESCRIBED} more pairs of names are nearly the same")
    return lines


def _same_words(entries: Sequence[ClassEntry]) -> Iterator[tuple[int, int]]:
    by_word: dict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        by_word[_spelling_key(entry.name)].append(index)
    for indices in by_word.values():
        yield from pairwise(indices)
    for index, entry in enumerate(entries):
        for synonym in entry.synonyms:
            for other in by_word.get(_spelling_key(synonym), ()):
                if other != index:
                    yield min(index, other), max(index, other)


def _one_slip(entries: Sequence[ClassEntry]) -> Iterator[tuple[int, int]]:
    """Pairs one edit apart, found by the letters they share when one is left out of a long word."""
    from rapidfuzz.distance import OSA

    spelled = [tuple(_parts(entry.name)) for entry in entries]
    shortened: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, parts in enumerate(spelled):
        for variant in _with_a_letter_less(parts):
            shortened[variant].append(index)
    for indices in shortened.values():
        for place, second in enumerate(indices):
            # Real groups are small; the limit keeps a list of thousands of near-equal names linear, too.
            for first in indices[max(0, place - GROUP) : place]:
                one, other = " ".join(spelled[first]), " ".join(spelled[second])
                if OSA.distance(one, other) == 1 and _digits(one) == _digits(other):
                    yield first, second


def _digits(name: str) -> str:
    """Numbered names ("type 1042", "type 1043") are told apart by nothing else, and on purpose."""
    return "".join(filter(str.isdigit, name))


def _with_a_letter_less(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    found = {parts}
    for place, part in enumerate(parts):
        if len(part) >= TYPO_LETTERS:
            shorter = {part[:cut] + part[cut + 1 :] for cut in range(len(part))}
            found |= {(*parts[:place], short, *parts[place + 1 :]) for short in shorter}
    yield from found


def _spelling_key(name: str) -> str:
    return word_key(" ".join(_parts(name)))


def _parts(name: str) -> list[str]:
    return [AMERICAN_SPELLING.get(part, part) for part in re.split(r"[\s_-]+", name.casefold().strip()) if part]
