"""The whole runtime on the tiny bundle: with real ONNX graphs, and with canned outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ebseg_deploy
import numpy as np
import pytest
from ebseg_deploy.contract import ADAB_DECODER, OPEN_VOCAB_HEAD, Size
from ebseg_deploy.errors import BackendError, BundleError, InputError, VocabularyError
from ebseg_deploy.runtime.backends.fake import FakeBackend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.canvas import Placement
from ebseg_deploy.runtime.label_map import label_map
from ebseg_deploy.runtime.segmenter import Segmentation, Segmenter
from ebseg_deploy.runtime.vocabulary import Vocabulary

WORDS = ("sky", "red fox", "road", "tree")


def make_vocabulary(bundle: Bundle, names: tuple[str, ...] = WORDS, seed: int = 0) -> Vocabulary:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(len(names) + 1, bundle.model.embedding_dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Vocabulary(
        names=names,
        synonyms=((),) * len(names),
        seen=np.arange(len(names)) % 2 == 0,
        embeddings=rows[:-1],
        background=rows[-1:],
        model=bundle.model.name,
        encoder_sha256=bundle.manifest.text.encoder_sha256,
        templates=bundle.manifest.text.templates,
        logit_scale=bundle.model.logit_scale,
    )


@pytest.fixture
def segmenter(tiny_bundle: Path) -> Segmenter:
    return Segmenter.load(tiny_bundle, threads=1)


@pytest.fixture
def words(segmenter: Segmenter) -> Vocabulary:
    return make_vocabulary(segmenter.bundle)


def test_a_picture_and_words_give_a_label_map(
    segmenter: Segmenter, words: Vocabulary, picture: Path, picture_pixels: np.ndarray
) -> None:
    result = segmenter(picture, words)
    assert result.labels.shape == picture_pixels.shape[:2]
    assert result.labels.dtype == np.uint8
    assert result.labels.max() < len(WORDS)
    assert result.names == WORDS
    assert result.palette.shape == (4, 3)
    assert result.canvas == Size(height=64, width=96)
    assert result.valid_size == (64, 96)
    assert result.scores is None
    assert sum(result.areas.values()) == pytest.approx(1)
    for name, area in result.areas.items():
        assert area == np.mean(result.labels == WORDS.index(name))


def test_every_source_of_a_picture_gives_the_same(
    segmenter: Segmenter, words: Vocabulary, picture: Path, picture_pixels: np.ndarray
) -> None:
    wanted = segmenter(picture_pixels, words).labels
    for source in (picture, str(picture), picture.read_bytes()):
        np.testing.assert_array_equal(segmenter(source, words).labels, wanted)


def test_labels_follow_from_the_graphs_outputs(
    segmenter: Segmenter, words: Vocabulary, picture_pixels: np.ndarray
) -> None:
    place = Placement(canvas=Size(height=64, width=96), valid_size=(64, 96))
    prediction = segmenter.predict([picture_pixels], [place], words)
    assert prediction.mask_logits.shape == (1, 8, 16, 24)
    assert prediction.class_probabilities.shape == (1, 8, 4)
    wanted = label_map(
        prediction.mask_logits[0], prediction.class_probabilities[0], place.canvas, (64, 96), picture_pixels.shape[:2]
    )
    np.testing.assert_array_equal(segmenter(picture_pixels, words).labels, wanted)


def test_words_and_their_seen_flags_reach_the_head(tiny_bundle: Path, picture_pixels: np.ndarray) -> None:
    backend = FakeBackend()
    segmenter = Segmenter.load(tiny_bundle, backend)
    words = make_vocabulary(segmenter.bundle)
    segmenter(picture_pixels, words)
    [head] = [inputs for name, inputs in backend.calls if name == OPEN_VOCAB_HEAD]
    np.testing.assert_array_equal(head["text_embeddings"], words.text_embeddings)
    np.testing.assert_array_equal(head["seen"], [1, 0, 1, 0])


def test_canned_outputs_decide_the_labels(tiny_bundle: Path, picture_pixels: np.ndarray) -> None:
    masks = np.full((1, 8, 16, 24), -20, dtype=np.float32)
    masks[0, 0, :, :12] = 20
    masks[0, 1, :, 12:] = 20
    probabilities = np.zeros((1, 8, 4), dtype=np.float32)
    probabilities[0, 0, 3] = probabilities[0, 1, 1] = 1

    def decode(inputs: Any) -> dict[str, np.ndarray]:
        embeddings = np.zeros((1, 8, 16), dtype=np.float32)
        return {"mask_logits": masks, **{f"embeddings_{which}": embeddings for which in "abd"}}

    backend = FakeBackend({ADAB_DECODER: decode, OPEN_VOCAB_HEAD: {"class_probabilities": probabilities}})
    segmenter = Segmenter.load(tiny_bundle, backend)
    labels = segmenter(picture_pixels, make_vocabulary(segmenter.bundle)).labels
    assert (labels[:, :44] == 3).all()
    assert (labels[:, 46:] == 1).all()


def test_vocabulary_from_names_is_encoded_by_the_bundle(segmenter: Segmenter, picture: Path) -> None:
    words = segmenter.vocabulary(["cat", "red fox"])
    assert words.names == ("cat", "red fox")
    assert segmenter(picture, words).labels.shape == segmenter(picture, ["cat", "red fox"]).labels.shape
    np.testing.assert_array_equal(segmenter(picture, words).labels, segmenter(picture, ["cat", "red fox"]).labels)


def test_vocabulary_of_another_text_encoder_is_refused(segmenter: Segmenter, words: Vocabulary, picture: Path) -> None:
    with pytest.raises(VocabularyError, match="build it again with this bundle"):
        segmenter(picture, replace(words, encoder_sha256="0" * 64))


def test_many_classes_give_sixteen_bits(segmenter: Segmenter, picture: Path) -> None:
    names = tuple(f"class {i}" for i in range(300))
    assert segmenter(picture, make_vocabulary(segmenter.bundle, names)).labels.dtype == np.uint16


class TestSizes:
    def test_output_size(self, segmenter: Segmenter, words: Vocabulary, picture: Path) -> None:
        assert segmenter(picture, words, output_size=(33, 50)).labels.shape == (33, 50)

    @pytest.mark.parametrize("size", [(0, 50), (50, -1), (99999, 99999)])
    def test_unusable_output_size_is_refused_before_the_graphs_run(
        self, tiny_bundle: Path, picture: Path, size: tuple[int, int]
    ) -> None:
        backend = FakeBackend()
        segmenter = Segmenter.load(tiny_bundle, backend)
        with pytest.raises(InputError, match=f"output size {size[0]}x{size[1]} "):
            segmenter(picture, make_vocabulary(segmenter.bundle), output_size=size)
        assert not backend.calls

    def test_resize_never_takes_the_pictures_own_pixels(self, tiny_bundle: Path, picture_pixels: np.ndarray) -> None:
        backend = FakeBackend()
        segmenter = Segmenter.load(tiny_bundle, backend)
        result = segmenter(picture_pixels, make_vocabulary(segmenter.bundle), resize="never")
        assert result.valid_size == (60, 90)
        image = backend.calls[0][1]["image"]
        np.testing.assert_array_equal(image[0, :, :60, :90].transpose(1, 2, 0), picture_pixels)
        np.testing.assert_array_equal(backend.calls[0][1]["valid_size"], [[60, 90]])

    def test_resize_never_refuses_what_does_not_fit(self, segmenter: Segmenter, words: Vocabulary) -> None:
        with pytest.raises(InputError, match="fits on no canvas of 64x64, 64x96"):
            segmenter(np.zeros((65, 10, 3), dtype=np.uint8), words, resize="never")

    def test_canvas_can_be_chosen(self, segmenter: Segmenter, words: Vocabulary, picture: Path) -> None:
        small = Size(height=64, width=64)
        result = segmenter(picture, words, canvas=small)
        assert result.canvas == small
        assert result.valid_size == (43, 64)
        with pytest.raises(BundleError, match="no canvas 32x32"):
            segmenter(picture, words, canvas=Size(height=32, width=32))

    def test_one_pixel(self, segmenter: Segmenter, words: Vocabulary) -> None:
        result = segmenter(np.full((1, 1, 3), 9, dtype=np.uint8), words)
        assert result.labels.shape == (1, 1)
        assert result.overlay().width >= 1


class TestScores:
    def test_all_and_some(self, segmenter: Segmenter, words: Vocabulary, picture: Path) -> None:
        every = segmenter(picture, words, scores=True)
        assert every.scored == WORDS
        assert every.scores is not None
        assert every.scores.shape == (4, 60, 90)
        assert (every.scores.argmax(axis=0) == every.labels).mean() > 0.999
        some = segmenter(picture, words, scores=["tree", "sky"])
        assert some.scores is not None
        np.testing.assert_allclose(some.scores, every.scores[[3, 0]], rtol=1e-5)
        assert segmenter(picture, words, scores="tree").scored == ("tree",)

    def test_unknown_class(self, segmenter: Segmenter, words: Vocabulary, picture: Path) -> None:
        with pytest.raises(VocabularyError, match="scores of 'cow': not a class of the vocabulary"):
            segmenter(picture, words, scores=["cow"])


class TestBatches:
    def pictures(self) -> list[np.ndarray]:
        random = np.random.default_rng(3)
        shapes = [(60, 90), (64, 64), (30, 30), (50, 75), (40, 62)]
        return [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]

    def test_same_as_one_by_one(self, segmenter: Segmenter, words: Vocabulary) -> None:
        results = segmenter.batch(self.pictures(), words)
        assert [result.labels.shape for result in results] == [picture.shape[:2] for picture in self.pictures()]
        for result, picture in zip(results, self.pictures(), strict=True):
            np.testing.assert_array_equal(result.labels, segmenter(picture, words).labels)

    def test_a_bundle_of_fixed_batch_is_filled(self, make_tiny_bundle: Callable[..., Path]) -> None:
        one = Segmenter.load(make_tiny_bundle("one.ebseg"))
        two = Segmenter.load(make_tiny_bundle("two.ebseg", batch=2))
        words = make_vocabulary(one.bundle)
        for result, wanted in zip(two.batch(self.pictures(), words), one.batch(self.pictures(), words), strict=True):
            assert result.canvas == wanted.canvas
            assert (result.labels == wanted.labels).mean() > 0.999

    def test_no_pictures(self, segmenter: Segmenter, words: Vocabulary) -> None:
        assert segmenter.batch([], words) == []

    def test_more_than_the_batch_at_once_is_refused(self, segmenter: Segmenter, words: Vocabulary) -> None:
        place = Placement(canvas=segmenter.bundle.sizes[0], valid_size=(30, 30))
        picture = np.zeros((30, 30, 3), dtype=np.uint8)
        with pytest.raises(InputError, match=r"2 pictures in 2 places .*for a batch of 1"):
            segmenter.predict([picture, picture], [place, place], words)
        for pictures, places in (([], []), ([picture], []), ([], [place])):
            with pytest.raises(InputError, match=f"{len(pictures)} pictures in {len(places)} places"):
                segmenter.predict(pictures, places, words)


class TestGraphs:
    def test_opened_at_first_use_only(self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = []
        backend = FakeBackend()
        real = backend.open
        monkeypatch.setattr(
            backend, "open", lambda file, **more: (opened.append(Path(file).stem), real(file, **more))[1]
        )
        segmenter = Segmenter.load(tiny_bundle, backend)
        words = make_vocabulary(segmenter.bundle)
        assert opened == []
        segmenter(np.zeros((64, 64, 3), dtype=np.uint8), words)
        segmenter(np.zeros((32, 32, 3), dtype=np.uint8), words)
        wanted = {"clip_image_encoder_64x64", "sam_image_encoder_64x64", "adab_decoder_64x64", "open_vocab_head"}
        assert sorted(opened) == sorted(wanted)

    def test_warm_up_opens_all_but_the_text_encoder(self, tiny_bundle: Path) -> None:
        backend = FakeBackend()
        segmenter = Segmenter.load(tiny_bundle, backend)
        segmenter.warm_up(segmenter.bundle.sizes[0])
        assert len(backend._graphs) == 4
        segmenter.warm_up()
        assert len(backend._graphs) == 7
        segmenter.close()
        assert not backend._graphs

    def test_image_encoders_overlap(self, tiny_bundle: Path, picture_pixels: np.ndarray) -> None:
        meeting = threading.Barrier(2)

        def meet(inputs: Any) -> dict[str, np.ndarray]:
            meeting.wait(timeout=10)  # breaks, and fails the test, unless both encoders are in it
            return {}

        backend = FakeBackend({"clip_image_encoder": meet, "sam_image_encoder": meet})
        segmenter = Segmenter.load(tiny_bundle, backend, overlap=True)
        assert segmenter(picture_pixels, make_vocabulary(segmenter.bundle)).labels.shape == (60, 90)

    def test_overlap_does_not_change_the_result(self, tiny_bundle: Path, picture_pixels: np.ndarray) -> None:
        results = []
        for overlap in (False, True):
            with Segmenter.load(tiny_bundle, threads=1, overlap=overlap) as segmenter:
                results.append(segmenter(picture_pixels, make_vocabulary(segmenter.bundle)).labels)
        np.testing.assert_array_equal(*results)

    @pytest.mark.parametrize("overlap", [False, True])
    @pytest.mark.parametrize("graph", ["clip_image_encoder", "sam_image_encoder"])
    def test_failure_of_an_encoder_is_told(
        self, tiny_bundle: Path, picture_pixels: np.ndarray, overlap: bool, graph: str
    ) -> None:
        def fail(inputs: Any) -> dict[str, np.ndarray]:
            raise BackendError("out of memory", cure="free some")

        segmenter = Segmenter.load(tiny_bundle, FakeBackend({graph: fail}), overlap=overlap)
        with pytest.raises(BackendError, match="out of memory"):
            segmenter(picture_pixels, make_vocabulary(segmenter.bundle))

    def test_nan_from_a_graph_is_told(self, tiny_bundle: Path, picture_pixels: np.ndarray) -> None:
        broken = {"class_probabilities": np.full((1, 8, 4), np.nan, dtype=np.float32)}
        segmenter = Segmenter.load(tiny_bundle, FakeBackend({OPEN_VOCAB_HEAD: broken}))
        with pytest.raises(BackendError, match="class_probabilities holds NaN"):
            segmenter(picture_pixels, make_vocabulary(segmenter.bundle))

    def test_unknown_precision(self, tiny_bundle: Path) -> None:
        with pytest.raises(BundleError, match="no precision 'int4'; choose from fp32"):
            Segmenter.load(tiny_bundle, precision="int4")

    def test_threads_share_a_segmenter(self, segmenter: Segmenter, words: Vocabulary) -> None:
        pictures = TestBatches().pictures()
        wanted = [segmenter(picture, words).labels for picture in pictures]
        found: dict[int, np.ndarray] = {}

        def work(i: int) -> None:
            found[i] = segmenter(pictures[i], words).labels

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pictures))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, labels in enumerate(wanted):
            np.testing.assert_array_equal(found[i], labels)


def test_public_names() -> None:
    assert ebseg_deploy.Segmenter is Segmenter
    assert ebseg_deploy.Segmentation is Segmentation
