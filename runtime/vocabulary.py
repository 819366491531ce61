"""A vocabulary: class names with all the network needs to know of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import VocabularyError
from .class_names import MAX_CLASSES, name_key, refuse_duplicates

UNIT_LENGTH_TOLERANCE = 1e-3
"""A row of `embeddings` may differ from unit length by so much: float16 text encoders stay below 1e-3."""
BUILD_AGAIN = "build it again with `ebseg vocab build`"


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """N class names, encoded by one text encoder. Immutable; verbs give a new one.

    Raises:
        VocabularyError: when made with parts that do not fit one another, or a name twice.
    """

    names: tuple[str, ...]
    """In label order: the label map's value 0 is the first."""
    synonyms: tuple[tuple[str, ...], ...]
    """Further words of each class; they decided its seen flag and are not encoded."""
    seen: NDArray[np.bool_]
    """(N,): the class was taught in training, so α weighs the frozen embedding D, not β."""
    embeddings: NDArray[np.float32]
    """(N, D), rows of unit length."""
    background: NDArray[np.float32]
    """(1, D), the learned background embedding, of any length."""
    model: str
    encoder_sha256: str
    """The text encoder's identity, as `contract.TextRecord` has it."""
    templates: tuple[str, ...]
    logit_scale: float

    def __post_init__(self) -> None:
        fault = self._fault()
        if fault:
            raise VocabularyError(f"vocabulary: {fault}", cure=BUILD_AGAIN)
        refuse_duplicates(self.names, where="vocabulary")
        for name in ("seen", "embeddings", "background"):
            view = getattr(self, name).view()
            view.setflags(write=False)
            object.__setattr__(self, name, view)

    def _fault(self) -> str | None:
        count, (embeddings, background) = len(self.names), (self.embeddings, self.background)
        if not 1 <= count <= MAX_CLASSES:
            return f"{count} classes, wanted 1 to {MAX_CLASSES}"
        if len(self.synonyms) != count:
            return f"synonyms for {len(self.synonyms)} classes, wanted {count}"
        if self.seen.shape != (count,) or self.seen.dtype != np.bool_:
            return f"seen flags are {self.seen.dtype} {self.seen.shape}, wanted bool ({count},)"
        for what, array, rows in (("embeddings", embeddings, count), ("background", background, 1)):
            if array.ndim != 2 or array.shape[0] != rows or array.dtype != np.float32:
                return f"{what} are {array.dtype} {array.shape}, wanted float32 ({rows}, D)"
            if not np.isfinite(array).all():
                return f"{what} hold NaN or infinity"
        if embeddings.shape[1] != background.shape[1]:
            return f"embeddings have width {embeddings.shape[1]}, the background {background.shape[1]}"
        length = np.linalg.norm(embeddings.astype(np.float64), axis=1)
        worst = int(np.argmax(np.abs(length - 1)))
        if abs(length[worst] - 1) > UNIT_LENGTH_TOLERANCE:
            return f"the embedding of {self.names[worst]!r} has length {length[worst]:.4g}, wanted 1"
        if not np.linalg.norm(background) > 0:
            return "the background embedding is zero"
        return None

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} classes, {int(self.seen.sum())} seen, model={self.model!r})"

    @property
    def text_embeddings(self) -> NDArray[np.float32]:
        """(N+1, D) float32: the classes, then the background, each of unit length."""
        return unit_rows(np.concatenate([self.embeddings, self.background]))

    @property
    def seen_flags(self) -> NDArray[np.float32]:
        """(N,) float32: 1 for a class seen in training, else 0."""
        return self.seen.astype(np.float32)

    def check_encoder(self, encoder_sha256: str, *, model: str) -> None:
        """Refuse a bundle whose text encoder did not make this vocabulary.

        Raises:
            VocabularyError: the hashes differ.
        """
        if self.encoder_sha256 != encoder_sha256:
            raise VocabularyError(
                f"vocabulary made by text encoder {self.encoder_sha256[:12]} of {self.model}, "
                f"the bundle has {encoder_sha256[:12]} of {model}",
                cure="build it again with this bundle: `ebseg vocab build`",
            )

    def without(self, names: Iterable[str]) -> Vocabulary:
        """Without the classes of these names; case and spaces do not count.

        Raises:
            VocabularyError: a name is not in the vocabulary, or nothing is left.
        """
        unwanted = {self._place(name) for name in names}
        kept = [place for place in range(len(self)) if place not in unwanted]
        if not kept:
            raise VocabularyError("vocabulary: every class would be removed", cure="keep at least one")
        return self._take(kept)

    def with_seen(self, *, seen: Iterable[str] = (), new: Iterable[str] = ()) -> Vocabulary:
        """With the seen flags of these names set by hand.

        Raises:
            VocabularyError: a name is not in the vocabulary, or is in both lists.
        """
        flags = self.seen.copy()
        set_to: dict[int, bool] = {}
        for value, names in ((True, seen), (False, new)):
            for name in names:
                place = self._place(name)
                if set_to.setdefault(place, value) != value:
                    raise VocabularyError(f"class {name!r} is called both seen and new", cure="say one of them")
                flags[place] = value
        return replace(self, seen=flags)

    def merged(self, *others: Vocabulary, keep_first: bool = False) -> Vocabulary:
        """This vocabulary's classes, then those of the others.

        Args:
            others: vocabularies of the same text encoder and templates.
            keep_first: of a name that comes again keep the first, instead of refusing it.

        Raises:
            VocabularyError: another text encoder, other templates, or a name that comes again.
        """
        for other in others:
            other.check_encoder(self.encoder_sha256, model=self.model)
            if other.templates != self.templates:
                raise VocabularyError(
                    "vocabularies: made with different prompt templates", cure="build both again with one release"
                )
        parts = (self, *others)
        names = [name for part in parts for name in part.names]
        chosen: Sequence[int] = range(len(names))
        if keep_first:
            first: dict[str, int] = {}
            for place, name in enumerate(names):
                first.setdefault(name_key(name), place)
            chosen = list(first.values())
        else:
            cure = "remove one of each, or keep the first: `ebseg vocab merge --keep-first`, in Python keep_first=True"
            refuse_duplicates(names, where="vocabularies", cure=cure)
        synonyms = [words for part in parts for words in part.synonyms]
        return replace(
            self,
            names=tuple(names[place] for place in chosen),
            synonyms=tuple(synonyms[place] for place in chosen),
            seen=np.concatenate([part.seen for part in parts])[list(chosen)],
            embeddings=np.concatenate([part.embeddings for part in parts])[list(chosen)],
        )

    def _place(self, name: str) -> int:
        places = {name_key(each): place for place, each in enumerate(self.names)}
        key = name_key(name)
        if key not in places:
            close = get_close_matches(key, places, n=1)
            hint = f"did you mean {self.names[places[close[0]]]!r}?" if close else "see `ebseg vocab show`"
            raise VocabularyError(f"vocabulary: no class {name!r}", cure=hint)
        return places[key]

    def _take(self, places: list[int]) -> Vocabulary:
        return replace(
            self,
            names=tuple(self.names[place] for place in places),
            synonyms=tuple(self.synonyms[place] for place in places),
            seen=self.seen[places],
            embeddings=self.embeddings[places],
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the vocabulary to a file, whole or not at all; see `vocabulary_file`.

        Raises:
            VocabularyError: the folder is missing or cannot be written to.
        """
        from .vocabulary_file import save_vocabulary

        return save_vocabulary(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read a file that `save` wrote.

        Raises:
            VocabularyError: the file is missing, damaged, of another schema version, or not a vocabulary.
        """
        from .vocabulary_file import load_vocabulary

        return load_vocabulary(Path(path))


def unit_rows(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Each row divided by its length; (…, D) float32. Lengths are taken in float64."""
    wide = rows.astype(np.float64)
    result: NDArray[np.float32] = (wide / np.linalg.norm(wide, axis=-1, keepdims=True)).astype(np.float32)
    return result
