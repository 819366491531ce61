"""The torch-free tokenizer gives the ids that open_clip's gives."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.contract import VILD_TEMPLATES
from ebseg_deploy.errors import BundleError, ExportError
from ebseg_deploy.runtime.class_names import BENCHMARKS, benchmark_classes
from ebseg_deploy.runtime.tokenizer import ClipTokenizer, clean
from hypothesis import assume, given, settings
from hypothesis import strategies as st

open_clip = pytest.importorskip("open_clip")

AWKWARD = [
    "",
    " ",
    "a",
    "A Photo OF a CaT.",
    "it's we're I'd you'll they've I'm don't",
    "IT'S",
    "'ſ 'S ''s",
    "cats&amp;dogs &lt;b&gt; &amp;amp;amp; &eacute; &#x1F600; &notanentity;",
    "<start_of_text>",
    "a <end_of_text> b",
    "x<start_of_text>y<end_of_text>",
    "!<end_of_text>",
    "<START_OF_TEXT> <|startoftext|>",
    "<start_of_text",
    "naïve café Å Ångström",
    "e\u0301 n\u0303 combining",
    "zero\u200bwidth\u200djoiner\ufeff",
    "soft\u00adhyphen",
    "ἀρχῇ ᾳ x\u0345y \u0345",
    "猫 と 犬 的照片",
    "красная лиса",
    "ثعلب أحمر",
    "लाल लोमड़ी",
    "빨간 여우",
    "👩‍👩‍👧‍👦 🦊 🏳️‍🌈 ☃",
    "١٢٣ ½ ² Ⅷ 3d 4x4",
    "road,route;rail/line\\wall_brick-tile",
    "tabs\tand\nnew\r\nlines\x0b\x0c\x1c\x85\u2028\u3000",
    "\x00\x01\x7f",
    "â€œmojibakeâ€\x9d schÃ¶n",
    "“curly” ‘quotes’ … — ﬁ ﬂ",
    "İstanbul DŽ ß ẞ Σς",
    "c p u , central processor",
    "supercalifragilisticexpialidocious" * 20,
    "word " * 200,
    "!" * 300,
    "\U0001f600" * 100,
    "\udbff".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
]


@pytest.fixture(scope="module")
def reference() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


def expected(reference: open_clip.SimpleTokenizer, texts: list[str]) -> np.ndarray:
    return reference(texts).numpy()


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_prompt_of_every_benchmark(
    benchmark: str, tokenizer: ClipTokenizer, reference: open_clip.SimpleTokenizer
) -> None:
    prompts = [
        template.replace("{}", each.name) for each in benchmark_classes(benchmark) for template in VILD_TEMPLATES
    ]
    np.testing.assert_array_equal(tokenizer.encode(prompts), expected(reference, prompts))


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text(text: str, tokenizer: ClipTokenizer, reference: open_clip.SimpleTokenizer) -> None:
    np.testing.assert_array_equal(tokenizer.encode([text]), expected(reference, [text]))


LETTERS = st.characters(exclude_categories=("Cs", "Cn"))
PIECES = st.one_of(st.text(LETTERS, max_size=12), st.sampled_from(["<start_of_text>", "<end_of_text>", "'s", "&amp;"]))


@settings(max_examples=300, deadline=None)
@given(text=st.lists(PIECES, max_size=6).map("".join))
def test_any_text(text: str, tokenizer: ClipTokenizer, reference: open_clip.SimpleTokenizer) -> None:
    # ftfy may mend text into code points nobody has assigned, on which the libraries' Unicode tables differ.
    assume(all(unicodedata.category(letter) != "Cn" for letter in clean(text)))
    np.testing.assert_array_equal(tokenizer.encode([text]), expected(reference, [text]))


def test_shape_padding_and_order(tokenizer: ClipTokenizer) -> None:
    tokens = tokenizer.encode(["a cat", "a <end_of_text>", "dog"])
    assert tokens.dtype == np.int32
    assert tokens.shape == (3, 77)
    assert tokens[0].tolist()[:5] == [49406, 320, 2368, 49407, 0]
    assert tokens[2].tolist()[:4] == [49406, 1929, 49407, 0]
    assert tokenizer.encode([]).shape == (0, 77)


def test_a_long_text_still_ends_in_end_of_text(tokenizer: ClipTokenizer) -> None:
    tokens = tokenizer.encode(["cat " * 200])
    assert tokens[0, -1] == 49407
    assert (tokens[0, 1:-1] == 2368).all()


def test_another_context_length(tokenizer_file: Path) -> None:
    tokens = ClipTokenizer.load(tokenizer_file, context_length=4).encode(["cat cat cat", "cat"])
    assert tokens.tolist() == [[49406, 2368, 2368, 49407], [49406, 2368, 49407, 0]]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tokenizer.json: No such file.*; export the bundle again"):
        ClipTokenizer.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", ["", "{}", "not json", "[1]"])
def test_not_a_tokenizer(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=r"^tokenizer .*; export the bundle again$"):
        ClipTokenizer.load(path)


def test_another_models_tokenizer(tokenizer_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer_file.read_text(encoding="utf-8").replace("<start_of_text>", "<s>"), encoding="utf-8")
    with pytest.raises(BundleError, match="no tokens <start_of_text> and <end_of_text>"):
        ClipTokenizer.load(path)


def test_writing_to_a_missing_folder(tmp_path: Path) -> None:
    from ebseg_deploy.export.tokenizer import write_tokenizer

    with pytest.raises(ExportError, match="give a folder that exists"):
        write_tokenizer(tmp_path / "none" / "tokenizer.json")
    assert list(tmp_path.iterdir()) == []
