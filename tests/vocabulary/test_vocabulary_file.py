"""A vocabulary and its file: what it holds, what it refuses, what is left after a failure."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.errors import VocabularyError
from ebseg_deploy.runtime.vocabulary import Vocabulary, unit_rows
from ebseg_deploy.runtime.vocabulary_file import HEADER_KEY
from safetensors.numpy import load, save, save_file

Make = Callable[..., Vocabulary]


def header_of(path: Path) -> dict[str, object]:
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"][HEADER_KEY])


def rewrite(path: Path, *, tensors: dict[str, np.ndarray] | None = None, **header: object) -> None:
    """Write the file again with other tensors or header fields; None drops a field."""
    changed = {key: value for key, value in (header_of(path) | header).items() if value is not None}
    path.write_bytes(save(tensors or load(path.read_bytes()), {HEADER_KEY: json.dumps(changed)}))


def refused(path: Path) -> str:
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.load(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"vocabulary {path}: ")
    assert caught.value.cure
    return str(caught.value)


@pytest.fixture
def saved(make_vocabulary: Make, tmp_path: Path) -> Path:
    return make_vocabulary("cat", "red fox", "road, route").save(tmp_path / "voc.safetensors")


def test_what_is_saved_is_loaded(make_vocabulary: Make, tmp_path: Path) -> None:
    vocabulary = make_vocabulary("cat", "猫 🦊", "road, route", logit_scale=88.5)
    loaded = Vocabulary.load(vocabulary.save(tmp_path / "voc.safetensors"))
    for name in ("names", "synonyms", "model", "encoder_sha256", "templates", "logit_scale"):
        assert getattr(loaded, name) == getattr(vocabulary, name)
    for name in ("seen", "embeddings", "background"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(vocabulary, name), strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["voc.safetensors"]


def test_saving_twice_gives_the_same_bytes(make_vocabulary: Make, tmp_path: Path) -> None:
    first, second = (make_vocabulary("cat", "dog").save(tmp_path / f"{n}.safetensors") for n in (1, 2))
    assert first.read_bytes() == second.read_bytes()


def test_what_the_network_takes(make_vocabulary: Make) -> None:
    vocabulary = make_vocabulary("cat", "dog", "fox")
    text = vocabulary.text_embeddings
    assert (text.shape, text.dtype) == ((4, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(text[3:], unit_rows(vocabulary.background))
    np.testing.assert_array_equal(vocabulary.seen_flags, np.array([1, 0, 1], np.float32), strict=True)


def test_it_cannot_be_changed(make_vocabulary: Make) -> None:
    own = np.array([True, False])
    vocabulary = make_vocabulary("cat", "dog", seen=own)
    with pytest.raises(FrozenInstanceError):
        vocabulary.names = ("a", "b")  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.embeddings[0] = 0
    own[0] = False  # the caller's array stays the caller's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seen": np.array([True])}, r"seen flags are bool \(1,\), wanted bool \(2,\)"),
        ({"seen": np.array([1.0, 0.0])}, "seen flags are float64"),
        ({"synonyms": ((),)}, "synonyms for 1 classes, wanted 2"),
        ({"embeddings": np.eye(3, 16, dtype=np.float32)}, r"wanted float32 \(2, D\)"),
        ({"embeddings": np.eye(2, 16)}, "embeddings are float64"),
        ({"embeddings": np.eye(2, 8, dtype=np.float32)}, "embeddings have width 8, the background 16"),
        ({"embeddings": np.eye(2, 16, dtype=np.float32) * 2}, "the embedding of 'cat' has length 2, wanted 1"),
        ({"embeddings": np.full((2, 16), np.nan, np.float32)}, "embeddings hold NaN"),
        ({"background": np.zeros((1, 16), np.float32)}, "background embedding is zero"),
        ({"background": np.ones((2, 16), np.float32)}, r"background are float32 \(2, 16\)"),
        ({"names": ()}, "0 classes"),
        ({"names": ("cat", "CAT")}, "same name more than once: 'cat'"),
    ],
)
def test_parts_that_do_not_fit(change: dict[str, object], message: str, make_vocabulary: Make) -> None:
    with pytest.raises(VocabularyError, match=message):
        make_vocabulary("cat", "dog", **change)


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file; make one with `ebseg vocab build`" in refused(tmp_path / "none.safetensors")
    assert "no such file" in refused(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 7, b"\xff" * 64, b"PK\x03\x04zip", pickle.dumps({"names": ["cat"]})]
)
def test_not_safetensors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "voc.safetensors"
    path.write_bytes(content)
    assert "not a safetensors file" in refused(path)


def test_cut_short(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-5])
    assert "not a safetensors file" in refused(saved)


def test_a_flipped_bit_is_noticed(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-40] ^= 1  # lowest bit of a float of the embeddings: still of unit length
    saved.write_bytes(bytes(data))
    assert "damaged, its tensors are not those that were saved" in refused(saved)


def test_other_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": np.zeros(3)}, path)
    assert "not a vocabulary" in refused(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this release reads version 1; install a newer ebseg-deploy"),
        ({"schema_version": 0}, "schema version 0.*build it again"),
        ({"schema_version": None}, "missing required field `schema_version`"),
        ({"names": None}, "header: .*`names`"),
        ({"names": ["cat", "dog", 3]}, r"header: .*`\$.names\[2\]`"),
        ({"names": ["cat", "dog"]}, "synonyms for 3 classes, wanted 2"),
        ({"names": ["cat", "dog", "Dog"]}, "same name more than once"),
        ({"extra": 1}, "unknown field `extra`"),
    ],
)
def test_header_with_a_fault(change: dict[str, object], message: str, saved: Path) -> None:
    rewrite(saved, **change)
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.load(saved)
    refused(saved)


def test_other_tensors(saved: Path) -> None:
    tensors = load(saved.read_bytes())
    del tensors["background"]
    rewrite(saved, tensors=tensors)
    assert "has tensors embeddings, seen, wanted" in refused(saved)


def test_unwritable_folder(make_vocabulary: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = make_vocabulary("cat")
    with pytest.raises(VocabularyError, match="give a path in a folder that can be written to"):
        vocabulary.save(tmp_path / "none" / "voc.safetensors")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "voc.safetensors"
    target.write_bytes(b"what was there")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VocabularyError, match=r"voc.safetensors: No space left on device"):
        vocabulary.save(target)
    assert [path.name for path in tmp_path.iterdir()] == ["voc.safetensors"]
    assert target.read_bytes() == b"what was there"


def test_another_text_encoder_is_refused(make_vocabulary: Make) -> None:
    vocabulary = make_vocabulary("cat")
    vocabulary.check_encoder("a" * 64, model="ebseg-test")
    with pytest.raises(VocabularyError, match=r"encoder a{12} of ebseg-test, the bundle has b{12} of ebseg-l; build"):
        vocabulary.check_encoder("b" * 64, model="ebseg-l")


def test_without(make_vocabulary: Make) -> None:
    vocabulary = make_vocabulary("cat", "red fox", "dog")
    rest = vocabulary.without(["Red  Fox"])
    assert rest.names == ("cat", "dog")
    assert rest.synonyms == (("catlet",), ("doglet",))
    assert rest.seen.tolist() == [True, True]
    np.testing.assert_array_equal(rest.embeddings, vocabulary.embeddings[[0, 2]])
    with pytest.raises(VocabularyError, match=r"no class 'rad fox'; did you mean 'red fox'\?"):
        vocabulary.without(["rad fox"])
    with pytest.raises(VocabularyError, match="no class 'tractor'; see `ebseg vocab show`"):
        vocabulary.without(["tractor"])
    with pytest.raises(VocabularyError, match="every class would be removed"):
        vocabulary.without(vocabulary.names)


def test_with_seen(make_vocabulary: Make) -> None:
    vocabulary = make_vocabulary("cat", "fox", "dog")
    changed = vocabulary.with_seen(seen=["FOX"], new=["dog"])
    assert changed.seen.tolist() == [True, True, False]
    assert vocabulary.seen.tolist() == [True, False, True]
    with pytest.raises(VocabularyError, match="'cat' is called both seen and new"):
        vocabulary.with_seen(seen=["cat"], new=["cat"])
    with pytest.raises(VocabularyError, match="no class 'cow'"):
        vocabulary.with_seen(seen=["cow"])


def test_merged(make_vocabulary: Make) -> None:
    first, second = make_vocabulary("cat", "fox"), make_vocabulary("dog", "Cat", "cow")
    with pytest.raises(VocabularyError, match="the same name more than once: 'cat'"):
        first.merged(second)
    whole = first.merged(second, keep_first=True)
    assert whole.names == ("cat", "fox", "dog", "cow")
    np.testing.assert_array_equal(whole.embeddings[:2], first.embeddings)
    np.testing.assert_array_equal(whole.embeddings[2:], second.embeddings[[0, 2]])
    assert whole.seen.tolist() == [True, False, True, True]
    assert first.merged().names == first.names


def test_only_vocabularies_of_one_encoder_merge(make_vocabulary: Make) -> None:
    first = make_vocabulary("cat")
    with pytest.raises(VocabularyError, match="made by text encoder bbbb"):
        first.merged(make_vocabulary("dog", encoder_sha256="b" * 64))
    with pytest.raises(VocabularyError, match="different prompt templates"):
        first.merged(make_vocabulary("dog", templates=("a {}",)))
