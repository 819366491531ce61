"""From names to embeddings: the formula, the runs, the cache, and a bundle's own text encoder."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ebseg_deploy.contract import VILD_TEMPLATES
from ebseg_deploy.errors import BackendError, BundleError, VocabularyError
from ebseg_deploy.runtime.backends import open_backend
from ebseg_deploy.runtime.backends.fake import FakeBackend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.class_names import ClassEntry
from ebseg_deploy.runtime.tokenizer import ClipTokenizer
from ebseg_deploy.runtime.vocabulary import Vocabulary
from ebseg_deploy.runtime.vocabulary_build import PROMPTS_PER_RUN, build_vocabulary, vocabulary_for
from msgspec.structs import replace
from quick_text_encoder import WIDTH, encode_tokens

BACKGROUND = np.arange(1, WIDTH + 1, dtype=np.float32)[None]


class CountingEncoder:
    """Counts the prompts of each run."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        assert tokens.dtype == np.int32
        assert tokens.shape[1] == 77
        self.runs.append(len(tokens))
        return encode_tokens(tokens)


@pytest.fixture
def build(tokenizer: ClipTokenizer) -> Callable[..., Vocabulary]:
    def run(*names: str | ClassEntry, **changes: Any) -> Vocabulary:
        parts: dict[str, Any] = {
            "encode_prompts": encode_tokens,
            "tokenizer": tokenizer,
            "templates": VILD_TEMPLATES,
            "background": BACKGROUND,
            "model": "ebseg-test",
            "encoder_sha256": "a" * 64,
            "logit_scale": 100.0,
        }
        entries = [ClassEntry(name=name) if isinstance(name, str) else name for name in names]
        return build_vocabulary(entries, **(parts | changes))

    return run


def test_mean_of_unit_prompts_brought_to_unit_length(
    build: Callable[..., Vocabulary], tokenizer: ClipTokenizer
) -> None:
    vocabulary = build("cat", "road, route")
    for name, row in zip(vocabulary.names, vocabulary.embeddings, strict=True):
        prompts = encode_tokens(tokenizer.encode(template.format(name) for template in VILD_TEMPLATES))
        mean = (prompts / np.linalg.norm(prompts, axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(vocabulary.background, BACKGROUND)
    assert vocabulary.templates == VILD_TEMPLATES
    assert len(set(VILD_TEMPLATES)) == 14


def test_a_name_is_encoded_alone_of_its_synonyms_and_neighbours(build: Callable[..., Vocabulary]) -> None:
    alone = build("cat").embeddings[0]
    among = build("dog", ClassEntry(name="cat", synonyms=("tiger",)), "fox").embeddings[1]
    np.testing.assert_array_equal(alone, among)


def test_braces_in_a_name_are_letters(build: Callable[..., Vocabulary]) -> None:
    assert build("{0} {x}", "{}").names == ("{0} {x}", "{}")


def test_seen_flags(build: Callable[..., Vocabulary]) -> None:
    vocabulary = build(
        "cat",
        "fox",
        ClassEntry(name="hound", synonyms=("dog",)),
        ClassEntry(name="wolf", seen=True),
        ClassEntry(name="cow", seen=False),
        ClassEntry(name="house", excludes=("house",)),
    )
    assert vocabulary.seen.tolist() == [True, False, True, True, False, False]


def test_runs_are_full_and_progress_counts_names(build: Callable[..., Vocabulary]) -> None:
    encoder, reports = CountingEncoder(), []
    build(*(f"class {n}" for n in range(20)), encode_prompts=encoder, progress=lambda *at: reports.append(at))
    assert encoder.runs == [PROMPTS_PER_RUN] * 4 + [20 * 14 - 4 * PROMPTS_PER_RUN]
    assert reports == [(done, 20) for done in range(21)]


def test_cached_names_are_not_encoded_again(build: Callable[..., Vocabulary], tmp_path: Path) -> None:
    first = build("cat", "dog", cache_dir=tmp_path)
    encoder = CountingEncoder()
    again = build("dog", "fox", "cat", cache_dir=tmp_path, encode_prompts=encoder)
    assert encoder.runs == [14]  # fox
    np.testing.assert_array_equal(again.embeddings[[2, 0]], first.embeddings)


@pytest.mark.parametrize(
    "change",
    [{"encoder_sha256": "b" * 64}, {"templates": ("a {}.",)}, {"cache_key": "fp16"}, {"background": np.ones((1, 8))}],
)
def test_another_encoder_template_or_precision_misses_the_cache(
    change: dict[str, Any], build: Callable[..., Vocabulary], tmp_path: Path
) -> None:
    build("cat", cache_dir=tmp_path)
    encoder = CountingEncoder()
    if "background" in change:
        with pytest.raises(BackendError, match=r"gave embeddings of shape \(14, 16\), wanted \(14, 8\)"):
            build("cat", cache_dir=tmp_path, encode_prompts=encoder, **change)
    else:
        build("cat", cache_dir=tmp_path, encode_prompts=encoder, **change)
    assert len(encoder.runs) == 1


@pytest.mark.parametrize("damage", [b"", b"junk", b"\x93NUMPY\x01\x00"])
def test_a_damaged_cache_entry_is_made_again(damage: bytes, build: Callable[..., Vocabulary], tmp_path: Path) -> None:
    first = build("cat", cache_dir=tmp_path)
    (entry,) = tmp_path.rglob("*.npy")
    entry.write_bytes(damage)
    np.testing.assert_array_equal(build("cat", cache_dir=tmp_path).embeddings, first.embeddings)
    assert len(entry.read_bytes()) > len(damage)


def test_a_cache_that_cannot_be_written_is_done_without(build: Callable[..., Vocabulary], tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert build("cat", "dog", cache_dir=in_the_way / "cache").names == ("cat", "dog")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_numbers_that_cannot_be_embeddings(value: float, build: Callable[..., Vocabulary], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="zero or not finite"):
        build("cat", encode_prompts=lambda t: np.full((len(t), WIDTH), value, np.float32), cache_dir=tmp_path)
    assert list(tmp_path.rglob("*.npy")) == []


@pytest.mark.parametrize("template", ["a photo", "a {} and a {}"])
def test_a_template_needs_one_place_for_the_name(template: str, build: Callable[..., Vocabulary]) -> None:
    with pytest.raises(VocabularyError, match=r"needs one \{\}"):
        build("cat", templates=(template,))


def test_doubts_are_told(build: Callable[..., Vocabulary]) -> None:
    told: list[str] = []
    build("cat", "cats", "very " * 80 + "long", warn=told.append)
    assert len(told) == 2
    assert told[0].startswith("'cat' and 'cats' are nearly the same")
    assert "fills the text encoder's 77 tokens" in told[1]
    with pytest.warns(UserWarning, match="nearly the same"):
        build("cat", "cats")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build("cat", "dog")


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def test_a_bundles_text_encoder(bundle: Bundle) -> None:
    with open_backend("onnxruntime") as backend:
        vocabulary = vocabulary_for(bundle, backend, ["cat", "fox"])
        assert vocabulary.names == ("cat", "fox")
        assert vocabulary.encoder_sha256 == bundle.manifest.text.encoder_sha256
        assert vocabulary.templates == bundle.manifest.text.templates
        assert vocabulary.logit_scale == bundle.model.logit_scale
        assert vocabulary.text_embeddings.shape == (3, bundle.model.embedding_dim)
        assert "0 graphs open" in repr(backend)
        np.testing.assert_array_equal(
            vocabulary_for(bundle, backend, ["fox"], cache=False).embeddings[0], vocabulary.embeddings[1]
        )


def test_every_kind_of_source(bundle: Bundle, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("cat\nfox\n")
    with open_backend("onnxruntime") as backend:
        vocabulary = vocabulary_for(bundle, backend, words)
        saved = vocabulary.save(tmp_path / "voc.safetensors")
        assert vocabulary.names == ("cat", "fox")
        assert vocabulary_for(bundle, backend, vocabulary) is vocabulary
        assert vocabulary_for(bundle, backend, str(saved)).names == ("cat", "fox")
        assert vocabulary_for(bundle, backend, [ClassEntry(name="dog")]).seen.tolist() == [True]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "cage" and "cages" are the data set's, not the user's
            assert vocabulary_for(bundle, backend, "ade20k-847").seen.sum() == 115
        with pytest.raises(VocabularyError, match="'cat': neither a file nor a benchmark; give a file, a list"):
            vocabulary_for(bundle, backend, "cat")
        with pytest.raises(VocabularyError, match="no class names"):
            vocabulary_for(bundle, backend, [])


def test_a_vocabulary_of_another_bundle(bundle: Bundle, make_tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    other = Bundle.open(make_tiny_bundle(seed=1))
    with open_backend("onnxruntime") as backend:
        path = vocabulary_for(other, backend, ["cat"]).save(tmp_path / "voc.safetensors")
        with pytest.raises(VocabularyError, match="vocabulary made by text encoder"):
            vocabulary_for(bundle, backend, path)


def test_canned_numbers_are_not_cached(bundle: Bundle, private_cache: Path) -> None:
    before = sorted(private_cache.rglob("*.npy"))
    name = "a name no other test encodes"
    rows = np.zeros((2, bundle.model.embedding_dim), np.float32)
    rows[:, 3] = 5
    backend = FakeBackend({"text_encoder": {"prompt_embeddings": rows}})
    vocabulary = vocabulary_for(bundle, backend, [name])
    np.testing.assert_array_equal(vocabulary.embeddings[0], rows[0] / 5)
    assert sorted(private_cache.rglob("*.npy")) == before


def test_a_graph_of_dynamic_length_gets_no_more_tokens_than_needed(bundle: Bundle) -> None:
    record = bundle.graph("text_encoder")
    (tokens,) = record.spec.inputs
    assert tokens.shape == ("prompts", "tokens")
    fixed = replace(record, spec=replace(record.spec, inputs=(replace(tokens, shape=("prompts", 77)),)))
    graphs = tuple(fixed if each == record else each for each in bundle.manifest.graphs)
    backend = FakeBackend()
    vocabulary_for(bundle, backend, ["cat", "red fox"])
    vocabulary_for(Bundle(bundle.path, replace(bundle.manifest, graphs=graphs)), backend, ["cat", "red fox"])
    (_, trimmed), (_, whole) = backend.calls
    assert whole["tokens"].shape == (4, 77)
    length = trimmed["tokens"].shape[1]
    np.testing.assert_array_equal(trimmed["tokens"], whole["tokens"][:, :length])
    end = whole["tokens"].max()
    assert (trimmed["tokens"] == end).any(axis=1).all()
    assert (trimmed["tokens"][:, -1] == end).any()


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_a_damaged_background(content: bytes, tiny_bundle_copy: Path) -> None:
    bundle = Bundle.open(tiny_bundle_copy)
    bundle.file(bundle.manifest.text.background).write_bytes(content)
    with open_backend("onnxruntime") as backend, pytest.raises(BundleError, match="has no tensor `background`"):
        vocabulary_for(bundle, backend, ["cat"])
