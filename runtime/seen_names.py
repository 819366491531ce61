"""Which class names the training set taught: the seen rule.

EBSeg balances its embeddings with α for classes seen in training and β for new ones. A class is seen when one of its
words is a word of the training set: COCO-Stuff, unless a bundle names its own training classes. Words are compared by
`word_key`, so that "cats", "hot-dog" and "Wine glass" find "cat", "hot dog" and "wineglass".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

IRREGULAR_PLURALS = {
    "calves": "calf",
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "halves": "half",
    "knives": "knife",
    "leaves": "leaf",
    "lenses": "lens",
    "lens": "lens",
    "loaves": "loaf",
    "mice": "mouse",
    "people": "person",
    "shelves": "shelf",
    "skis": "ski",
    "taxis": "taxi",
    "teeth": "tooth",
    "wolves": "wolf",
}
_SILENT_E = re.compile(r"(?<=[sxzo])e$|(?<=[cs]h)e$")


def word_key(word: str) -> str:
    """What two spellings of a word have in common.

    Case, spaces, hyphens, underscores and the plural of the last part do not count: "Potted-Plants" and "pottedplant"
    have the same key. A key is for comparing, not for reading ("horse" gives "hors", as "horses" does).
    """
    parts = re.split(r"[\s_-]+", unicodedata.normalize("NFKC", word).casefold().strip())
    return "".join([*parts[:-1], _singular(parts[-1])])


def _singular(part: str) -> str:
    if part in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[part]
    if part.endswith("men"):
        return part[:-2] + "an"
    if part.endswith("s") and not part.endswith(("ss", "us", "is")) and len(part) > 2:
        part = part[:-1]
    if part.endswith("ie"):
        return part[:-2] + "y"
    # "bus" and "horse" both make "…ses": without the e, each meets its own plural.
    return _SILENT_E.sub("", part)


def words_of(name: str, synonyms: Iterable[str] = (), excludes: Iterable[str] = ()) -> frozenset[str]:
    """Keys of the words a class goes by.

    Args:
        name: as the data set spells it; its comma-separated parts each count ("road, route").
        synonyms: further words.
        excludes: words that the name or its parts suggest and that do not count.
    """
    words = {word_key(word) for word in (*name.split(","), *synonyms)}
    return frozenset(words - {word_key(word) for word in excludes} - {""})


@lru_cache(maxsize=8)
def training_words(names: tuple[str, ...] | None = None) -> frozenset[str]:
    """Keys of every word of the training set.

    Args:
        names: of its classes, as a bundle's manifest has them; COCO-Stuff's 171, with their synonyms, if None.
    """
    if names is not None:
        return frozenset().union(*(words_of(name) for name in names))
    from .class_names import benchmark_classes

    return frozenset().union(
        *(words_of(entry.name, entry.synonyms, entry.excludes) for entry in benchmark_classes("coco-stuff-171"))
    )


def is_seen(
    name: str,
    synonyms: Iterable[str] = (),
    excludes: Iterable[str] = (),
    *,
    training_names: tuple[str, ...] | None = None,
) -> bool:
    """Whether the training set taught a class: whether one of its words is one of the training set's.

    Args:
        name, synonyms, excludes: as in `words_of`.
        training_names: as in `training_words`.
    """
    return not words_of(name, synonyms, excludes).isdisjoint(training_words(training_names))
