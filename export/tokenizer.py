"""CLIP's byte-pair tokenizer as a `tokenizer.json` that the `tokenizers` library reads without torch.

The vocabulary and the merges come from the BPE file that open_clip ships. Cleaning the text (ftfy, HTML entities,
white space, lower case) is not in the file: `runtime.tokenizer` does it, because Hugging Face's normalisers have no
ftfy.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

from ..errors import ExportError
from ..runtime.atomic_write import write_atomically

END_OF_TEXT = "<end_of_text>"
START_OF_TEXT = "<start_of_text>"
WORD_END = "</w>"
MERGES = 49152 - 256 - 2
"""CLIP uses the first 48,894 merges of the file: 49,152 tokens less the 256 bytes and the two marks of a text."""

# The pattern of the CLIP paper's code. The marks of a text come first: typed in a prompt, they are one token.
WORDS = r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def write_tokenizer(path: str | os.PathLike[str]) -> Path:
    """Write CLIP's tokenizer to a file, whole or not at all.

    Args:
        path: the file to write, usually `tokenizer.json` of a bundle. The folder must exist.

    Returns:
        The path written.

    Raises:
        ExportError: the folder cannot be written to.
    """
    target = Path(path)
    try:
        write_atomically(target, tokenizer_json().encode())
    except OSError as error:
        raise ExportError(
            f"tokenizer {target}: {error.strerror}", cure="give a folder that exists and can be written to"
        ) from error
    return target


def tokenizer_json() -> str:
    """CLIP's tokenizer in Hugging Face's `tokenizer.json` format."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary, merges = read_merges()
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=WORD_END, continuing_subword_prefix="")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in (START_OF_TEXT, END_OF_TEXT)])
    text: str = tokenizer.to_str(pretty=False)
    return text


def read_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids and merges, in CLIP's order: bytes, bytes that end a word, merges, start and end of text."""
    from open_clip.tokenizer import default_bpe
    from tokenizers.pre_tokenizers import ByteLevel

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : MERGES + 1]  # the first line is a heading
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    if len(merges) != MERGES:
        raise ExportError(
            f"open_clip's BPE file has {len(merges)} merges, CLIP needs {MERGES}", cure="install open_clip_torch again"
        )
    # Bytes stand as characters: printable Latin-1 for itself and first, then the others moved to U+0100 and on.
    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [letter + WORD_END for letter in letters]
    tokens += [first + second for first, second in merges]
    tokens += [START_OF_TEXT, END_OF_TEXT]
    return {token: index for index, token in enumerate(tokens)}, merges
