"""From text to CLIP's token ids, without torch.

Gives the ids that open_clip's tokenizer gives: cleaning is done here, splitting and byte-pair merging by the
`tokenizers` library from the bundle's `tokenizer.json`. Equal for every character of Unicode 14; letters of later
versions are told from signs by each library's own tables.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTEXT_LENGTH = 77
START_OF_TEXT = "<start_of_text>"
END_OF_TEXT = "<end_of_text>"
GREEK_IOTA_BELOW = "\u0345"
"""The one character that CLIP's pattern takes neither for a letter nor for a sign (its upper case is a letter):
it ends a word and gives no token."""


class ClipTokenizer:
    """CLIP's byte-pair tokenizer.

    Example:
        tokenizer = ClipTokenizer.load(bundle.file(bundle.manifest.text.tokenizer))
        tokens = tokenizer.encode(["a photo of a cat."])   # (1, 77) int32
    """

    def __init__(self, tokenizer: Tokenizer, *, context_length: int = CONTEXT_LENGTH) -> None:
        start, end = tokenizer.token_to_id(START_OF_TEXT), tokenizer.token_to_id(END_OF_TEXT)
        if start is None or end is None:
            raise BundleError(f"tokenizer: no tokens {START_OF_TEXT} and {END_OF_TEXT}", cure="export the bundle again")
        self.context_length = context_length
        self.start_of_text: int = start
        self.end_of_text: int = end
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, context_length: int = CONTEXT_LENGTH) -> ClipTokenizer:
        """Read a `tokenizer.json`.

        Raises:
            BundleError: the file is missing or is not a tokenizer.
        """
        from tokenizers import Tokenizer

        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise BundleError(f"tokenizer {path}: {error.strerror}", cure="export the bundle again") from error
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"tokenizer {path}: {error}", cure="export the bundle again") from error
        return cls(tokenizer, context_length=context_length)

    def encode(self, texts: Iterable[str]) -> NDArray[np.int32]:
        """Token ids of each text.

        Args:
            texts: T texts, as a person writes them.

        Returns:
            (T, context_length) int32: start, the text, end, zeros. A text that is too long is cut; its last id is
            still the end of text, which is where the text encoder reads the embedding.
        """
        cleaned = [clean(text) for text in texts]
        tokens = np.zeros((len(cleaned), self.context_length), dtype=np.int32)
        plain = [index for index, text in enumerate(cleaned) if not _has_mark(text)]
        encodings = self._tokenizer.encode_batch([cleaned[i] for i in plain], add_special_tokens=False)
        ids = dict(zip(plain, (encoding.ids for encoding in encodings), strict=True))
        for row, text in enumerate(cleaned):
            body = (ids[row] if row in ids else self._encode_with_marks(text))[: self.context_length - 2]
            tokens[row, : len(body) + 2] = [self.start_of_text, *body, self.end_of_text]
        return tokens

    def _encode_with_marks(self, text: str) -> list[int]:
        """Ids of a text in which `<start_of_text>` or `<end_of_text>` is spelled out.

        The library would cut such marks out before anything else; CLIP's pattern finds them only where a word can
        begin ("!<end_of_text>" is punctuation and letters).
        """
        marks = {START_OF_TEXT: self.start_of_text, END_OF_TEXT: self.end_of_text}
        ids: list[int] = []
        for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text):
            ids += [marks[word]] if word in marks else [token.id for token in self._tokenizer.model.tokenize(word)]
        return ids


def clean(text: str) -> str:
    """`text` as CLIP's tokenizer sees it: mended by ftfy, HTML entities decoded twice, single spaces, lower case."""
    from ftfy import fix_text

    text = " ".join(html.unescape(html.unescape(fix_text(text))).split()).lower()
    return text.replace(GREEK_IOTA_BELOW, " ")


def _has_mark(text: str) -> bool:
    return START_OF_TEXT in text or END_OF_TEXT in text
