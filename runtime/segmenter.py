"""From a picture and a list of words to a label map: the graphs of a bundle, run in order.

segmenter = Segmenter.load("b.ebseg")
words = segmenter.vocabulary(["road", "car", "tree"])
result = segmenter("street.jpg", words)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..contract import Size
from ..errors import InputError, VocabularyError
from .backends import Backend, open_backend
from .backends.tensorrt_backend import TensorRtBackend
from .bundle import Bundle
from .canvas import Placement, Resize, choose_canvas, place_picture
from .engine_pipeline import EnginePipeline
from .label_map import Labels, label_map, score_maps
from .palette import class_colours
from .picture import MAX_PICTURE_PIXELS, RGB, PictureSource, read_picture
from .pipeline import Pipeline, Prediction
from .segmentation import Segmentation
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from .vocabulary_build import Source

__all__ = ["Prediction", "Segmentation", "Segmenter"]


class Segmenter:
    """A bundle on a backend, ready for pictures. Make one with `Segmenter.load`; it may be used by several threads.

    Graphs are opened at their first use: those of a canvas with the first picture on it, the text encoder only while
    a vocabulary is built.

    Attributes:
        bundle: the opened bundle.
        backend: runs the graphs; its `reason` says why it was picked.
        precision: which of the bundle's precisions runs.
        threads: for the label map; the backend has its own.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        precision: str | None = None,
        threads: int | None = None,
        overlap: bool = True,
        sentinel: bool = True,
        max_pixels: int | None = MAX_PICTURE_PIXELS,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.precision = bundle.precisions[0] if precision is None else precision
        self.threads = threads
        self._sentinel = sentinel
        self._max_pixels = max_pixels
        self._pipeline: Pipeline | EnginePipeline
        if isinstance(backend, TensorRtBackend):
            self._pipeline = EnginePipeline(
                bundle, backend, precision=self.precision, overlap=overlap, sentinel=sentinel
            )
        else:
            self._pipeline = Pipeline(bundle, backend, precision=self.precision, overlap=overlap, sentinel=sentinel)

    @classmethod
    def load(
        cls,
        bundle: Bundle | str | os.PathLike[str],
        backend: Backend | str = "auto",
        *,
        threads: int | None = None,
        precision: str | None = None,
        overlap: bool = True,
        sentinel: bool = True,
        check_hashes: bool = True,
        max_pixels: int | None = MAX_PICTURE_PIXELS,
    ) -> Segmenter:
        """Open a bundle and a backend.

        Args:
            bundle: a bundle, or the path of its folder or zip.
            backend: a backend, or a name that `open_backend` takes.
            threads: threads inside one operator, and for the label map; None lets both choose.
            precision: one of the bundle's; its first by default.
            overlap: run the two image encoders at the same time.
            sentinel: on a GPU, hold the first run against the bundle's reference, and refuse engines that are wrong.
            check_hashes: see `Bundle.open`.
            max_pixels: the largest picture and output size; see `read_picture`.

        Raises:
            BundleError: the bundle is damaged, or has not this precision.
            BackendError: the backend is unknown or not installed.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, check_hashes=check_hashes)
        engine = backend if isinstance(backend, Backend) else open_backend(backend, threads=threads)
        return cls(
            opened,
            engine,
            precision=precision,
            threads=threads,
            overlap=overlap,
            sentinel=sentinel,
            max_pixels=max_pixels,
        )

    def vocabulary(
        self,
        source: Source,
        *,
        cache: bool = True,
        progress: Callable[[int, int], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> Vocabulary:
        """The vocabulary that `source` names, encoded by this bundle's text encoder.

        Args:
            source: class names; the path of a vocabulary file or of a file of names; or a benchmark's name.
            cache: keep encoded names in the user's cache folder, and look there first.
            progress: called as progress(names done, names in all).
            warn: called with one line for each cause for doubt; `warnings.warn` by default.

        Raises:
            VocabularyError: no names, a name twice, or a vocabulary file of another text encoder.
        """
        from .vocabulary_build import vocabulary_for

        return vocabulary_for(
            self.bundle,
            self.backend,
            source,
            precision=self.precision,
            cache=cache,
            sentinel=self._sentinel,
            progress=progress,
            warn=warn,
        )

    def __call__(
        self,
        image: PictureSource,
        vocabulary: Vocabulary | Source,
        *,
        resize: Resize = "fit",
        canvas: Size | None = None,
        output_size: tuple[int, int] | None = None,
        scores: bool | Sequence[str] = False,
    ) -> Segmentation:
        """Segment one picture.

        Args:
            image: what `read_picture` takes: a path, bytes, a Pillow image or an array.
            vocabulary: made by `vocabulary`, or what that takes (encoded anew for every call: make it once for many
                pictures).
            resize: "fit" resizes the picture to the canvas, "never" keeps its own pixels.
            canvas: one of `bundle.sizes`; the one that leaves the least padding by default.
            output_size: rows and columns of the label map; the picture's own by default.
            scores: True for the scores of all classes, or names of classes. They take 4 bytes a class and pixel:
                245 MB for 150 classes at 640x640.

        Raises:
            InputError: the picture cannot be read or fits on no canvas, or the output size is too large.
            VocabularyError: the vocabulary was made by another text encoder, or a name in `scores` is not a class.
            BackendError: a graph could not be opened or run.
        """
        return self.batch([image], vocabulary, resize=resize, canvas=canvas, output_size=output_size, scores=scores)[0]

    def batch(
        self,
        images: Iterable[PictureSource],
        vocabulary: Vocabulary | Source,
        *,
        resize: Resize = "fit",
        canvas: Size | None = None,
        output_size: tuple[int, int] | None = None,
        scores: bool | Sequence[str] = False,
    ) -> list[Segmentation]:
        """Segment several pictures; arguments and errors as of one.

        Pictures that share a canvas run together, as many as the bundle was exported for (`ebseg export --batch`).
        All are read before the first runs, and each result keeps its picture: give a long list in parts.

        Returns:
            One result for each picture, in their order.
        """
        if output_size is not None:
            self._check_output_size(*output_size)
        words = self._checked(vocabulary)
        scored = _scored_classes([scores] if isinstance(scores, str) else scores, words)
        pictures = [read_picture(image, max_pixels=self._max_pixels) for image in images]
        canvases = self.bundle.sizes if canvas is None else (canvas,)
        places = [choose_canvas(picture.shape[0], picture.shape[1], canvases, resize) for picture in pictures]
        results: dict[int, Segmentation] = {}
        for size in dict.fromkeys(place.canvas for place in places):
            members = [i for i, place in enumerate(places) if place.canvas == size]
            for start in range(0, len(members), self.bundle.manifest.batch):
                chunk = members[start : start + self.bundle.manifest.batch]
                inputs = [pictures[i] for i in chunk], [places[i] for i in chunk], words
                if isinstance(self._pipeline, EnginePipeline) and not scored:
                    results |= zip(chunk, self._label_on_device(*inputs, output_size), strict=True)
                    continue
                prediction = self.predict(*inputs)
                for row, i in enumerate(chunk):
                    results[i] = self._label_on_host(
                        pictures[i], places[i], prediction, row, words, output_size, scored
                    )
        return [results[i] for i in range(len(pictures))]

    def predict(self, pictures: Sequence[RGB], places: Sequence[Placement], vocabulary: Vocabulary) -> Prediction:
        """Run the graphs on pictures that share a canvas, and stop before the label map.

        Args:
            pictures: (H, W, 3) each; at most as many as the bundle's batch.
            places: where each lies on the canvas.
            vocabulary: N classes.

        Returns:
            Mask logits and class probabilities, a row for each picture.

        Raises:
            InputError: no picture, too many, or places that do not belong to them or share no canvas.
        """
        prediction = self._pipeline.run(*self._batch_inputs(pictures, places, vocabulary))
        return Prediction(
            mask_logits=prediction.mask_logits[: len(pictures)],
            class_probabilities=prediction.class_probabilities[: len(pictures)],
        )

    def warm_up(self, canvas: Size | None = None) -> None:
        """Open the graphs of a canvas, or of all, now rather than with the first picture."""
        for size in self.bundle.sizes if canvas is None else (canvas,):
            self._pipeline.open(size)

    def close(self) -> None:
        """Let go of the graphs."""
        self._pipeline.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Segmenter({self.bundle!r}, backend={self.backend.name!r}, precision={self.precision!r})"

    def _batch_inputs(
        self, pictures: Sequence[RGB], places: Sequence[Placement], vocabulary: Vocabulary
    ) -> tuple[Size, dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
        """What a pipeline takes: canvas, pictures, words."""
        batch = self.bundle.manifest.batch
        canvases = {place.canvas for place in places}
        if not 1 <= len(pictures) <= batch or len(places) != len(pictures) or len(canvases) != 1:
            raise InputError(
                f"{len(pictures)} pictures in {len(places)} places on {len(canvases)} canvases, for a batch of {batch}",
                cure="use Segmenter.batch, which sorts pictures into batches",
            )
        canvas = places[0].canvas
        images = [place_picture(picture, place) for picture, place in zip(pictures, places, strict=True)]
        sizes = [place.valid_size for place in places]
        # A graph of a fixed batch runs full; repeats are thrown away.
        missing = 0 if self.bundle.dynamic_batch else batch - len(pictures)
        return (
            canvas,
            {
                "image": np.stack(images + images[-1:] * missing),
                "valid_size": np.array(sizes + sizes[-1:] * missing, dtype=np.int32),
            },
            {"text_embeddings": vocabulary.text_embeddings, "seen": vocabulary.seen_flags},
        )

    def _label_on_device(
        self,
        pictures: Sequence[RGB],
        places: Sequence[Placement],
        words: Vocabulary,
        output_size: tuple[int, int] | None,
    ) -> list[Segmentation]:
        """Pictures that share a canvas, with their label maps made where the engines ran."""
        assert isinstance(self._pipeline, EnginePipeline)
        sizes = [(p.shape[0], p.shape[1]) if output_size is None else output_size for p in pictures]
        valid = [place.valid_size for place in places]
        found = self._pipeline.label_maps(
            *self._batch_inputs(pictures, places, words), list(zip(valid, sizes, strict=True))
        )
        return [
            _segmentation(labels, picture, place, words)
            for labels, picture, place in zip(found, pictures, places, strict=True)
        ]

    def _check_output_size(self, height: int, width: int) -> None:
        """Before the graphs run: a label map, its overlay and its PNG take up to 10 bytes a pixel."""
        if min(height, width) < 1:
            raise InputError(f"output size {height}x{width} has no pixels", cure="give at least 1x1")
        if self._max_pixels is not None and height * width > self._max_pixels:
            raise InputError(
                f"output size {height}x{width} is {height * width / 1e6:.0f} million pixels, "
                f"the limit is {self._max_pixels / 1e6:.0f} million",
                cure="give a smaller one; in Python, raise max_pixels",
            )

    def _checked(self, vocabulary: Vocabulary | Source) -> Vocabulary:
        words = vocabulary if isinstance(vocabulary, Vocabulary) else self.vocabulary(vocabulary)
        words.check_encoder(self.bundle.manifest.text.encoder_sha256, model=self.bundle.model.name)
        return words

    def _label_on_host(
        self,
        picture: RGB,
        place: Placement,
        prediction: Prediction,
        row: int,
        words: Vocabulary,
        output_size: tuple[int, int] | None,
        scored: list[int],
    ) -> Segmentation:
        size = picture.shape[:2] if output_size is None else output_size
        arguments = (
            prediction.mask_logits[row],
            prediction.class_probabilities[row],
            place.canvas,
            place.valid_size,
            (int(size[0]), int(size[1])),
        )
        found = _segmentation(label_map(*arguments, threads=self.threads), picture, place, words)
        if not scored:
            return found
        scores = score_maps(*arguments, classes=scored, threads=self.threads)
        return replace(found, scores=scores, scored=tuple(words.names[i] for i in scored))


def _segmentation(labels: Labels, picture: RGB, place: Placement, words: Vocabulary) -> Segmentation:
    """Without scores."""
    return Segmentation(
        labels=labels,
        names=words.names,
        palette=class_colours(len(words)),
        picture=picture,
        canvas=place.canvas,
        valid_size=place.valid_size,
    )


def _scored_classes(scores: bool | Sequence[str], words: Vocabulary) -> list[int]:
    if isinstance(scores, bool):
        return list(range(len(words))) if scores else []
    unknown = [name for name in scores if name not in words.names]
    if unknown:
        raise VocabularyError(f"scores of {unknown[0]!r}: not a class of the vocabulary", cure="use its own names")
    return [words.names.index(name) for name in scores]
