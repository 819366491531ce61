"""What INT8 costs where: one block at a time is quantised, everything else stays FP32, and label maps are compared.

The FP32 outputs of the two image encoders are kept for all pictures (4 MB a picture of nano, 31 MB of EBSeg-B at
640x640), so that a variant of the decoder runs the decoder alone, and a variant of an encoder runs that and the
decoder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..contract import (
    ADAB_DECODER,
    CLIP_IMAGE_ENCODER,
    OPEN_VOCAB_HEAD,
    SAM_IMAGE_ENCODER,
    SIZED_GRAPHS,
    GraphName,
    GraphRecord,
    Size,
)
from ..errors import CalibrationError
from ..export.precision.formulas import name_formulas
from ..export.precision.read import read_graph
from ..export.precision.recipes import Recipe
from ..runtime.backends import Backend, OpenGraph
from ..runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ..runtime.bundle import Bundle
from ..runtime.canvas import choose_canvas, place_picture
from ..runtime.label_map import label_map
from ..runtime.vocabulary import Vocabulary
from ..training.confusion import Confusion, figures
from .quantize import insert_qdq
from .quantize_bundle import ranges_for
from .ranges import Range, Ranges
from .sensitivity_blocks import blocks
from .survey import SurveyedPictures

Array = npt.NDArray[Any]

EMBEDDINGS = ("embeddings_a", "embeddings_b", "embeddings_d")

Progress = Callable[[str, int, int], None]
"""Called as progress(block, variants done, variants in all)."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What quantising one block alone costs."""

    graph: GraphName
    block: str | None
    """None: the whole graph."""
    products: int
    macs_share: float
    """Of the graph's multiply-adds, 0 to 1."""
    label_agreement: float
    """Share of the pixels that have the class FP32 gives, 0 to 1."""
    embedding_cosine: float
    """Between each query's embeddings A, B and D and FP32's: mean over queries and sets."""
    miou: float | None
    """Over seen and new classes, 0 to 1; None where the truth is not known."""
    seen_miou: float | None
    new_miou: float | None


@dataclass(frozen=True, kw_only=True)
class SensitivityReport:
    """All blocks, the FP32 bundle's own figures before them."""

    bundle: str
    model: str
    precision: str
    pictures: int
    miou: float | None
    seen_miou: float | None
    new_miou: float | None
    rows: tuple[Sensitivity, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_sensitivity(
    bundle: Bundle,
    recipe: Recipe,
    ranges: Ranges,
    pictures: SurveyedPictures,
    vocabulary: Vocabulary,
    *,
    background: Sequence[str] = (),
    size: Size | None = None,
    threads: int | None = None,
    progress: Progress = lambda block, done, total: None,
) -> SensitivityReport:
    """Quantise every graph and every block of it alone, and run the pictures.

    Args:
        bundle: FP32 graphs.
        recipe: what to quantise to, and what is never quantised.
        ranges: of all graphs that the recipe quantises.
        pictures: to measure on; with labels the mIoU is measured too.
        vocabulary: of this bundle's text encoder; its classes are those of the labels.
        background: classes that the means leave out.
        size: canvas; the bundle's first by default.
        threads: for ONNX Runtime.

    Raises:
        CalibrationError: a graph has no ranges, or those of another bundle's graph, or takes several pictures a run.
    """
    if bundle.manifest.batch != 1:
        raise CalibrationError(
            f"bundle {bundle.source}: takes {bundle.manifest.batch} pictures a run, wanted 1",
            cure="export it again with --batch 1",
        )
    canvas = bundle.sizes[0] if size is None else size
    with OnnxRuntimeBackend(threads=threads) as backend, tempfile.TemporaryDirectory(prefix="ebseg-") as scratch:
        quantised = [graph for graph in SIZED_GRAPHS if recipe.graphs[graph].quantised is not None]
        found = {
            graph: ranges_for(ranges, bundle, bundle.graph(graph, canvas, bundle.precisions[0])) for graph in quantised
        }
        run = _Run(bundle, backend, canvas, pictures, vocabulary, background)
        run.reference()
        variants = [
            (graph, block, names) for graph in quantised for block, names in _variants(bundle, graph, canvas, recipe)
        ]
        rows = []
        for number, (graph, block, names) in enumerate(variants):
            progress(f"{graph} {block or ''}".rstrip(), number, len(variants))
            file = Path(scratch) / f"{graph}.onnx"
            share = _write_variant(bundle, graph, canvas, recipe, found[graph], names, file)
            outcome = run.variant(graph, file)
            file.unlink()
            rows.append(Sensitivity(graph=graph, block=block, products=len(names), macs_share=share, **asdict(outcome)))
        progress("done", len(variants), len(variants))
        return SensitivityReport(
            bundle=str(bundle.source),
            model=bundle.model.name,
            precision=recipe.name,
            pictures=len(pictures),
            rows=tuple(rows),
            **run.figures_of_reference(),
        )


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    label_agreement: float
    embedding_cosine: float
    miou: float | None
    seen_miou: float | None
    new_miou: float | None


def _variants(
    bundle: Bundle, graph: GraphName, canvas: Size, recipe: Recipe
) -> Iterator[tuple[str | None, tuple[str, ...]]]:
    """The whole graph, then its blocks."""
    model = _load(bundle, bundle.graph(graph, canvas, bundle.precisions[0]))
    found = blocks(model, recipe.graphs[graph])
    yield None, tuple(name for names in found.values() for name in names)
    yield from found.items()


def _load(bundle: Bundle, record: GraphRecord) -> ir.Model:
    model = read_graph(bundle, record)
    name_formulas(model)
    return model


def _write_variant(
    bundle: Bundle,
    graph: GraphName,
    canvas: Size,
    recipe: Recipe,
    ranges: Mapping[str, Range],
    names: Sequence[str],
    file: Path,
) -> float:
    """Save a graph with these products quantised; returns their share of its multiply-adds."""
    model = _load(bundle, bundle.graph(graph, canvas, bundle.precisions[0]))
    done = insert_qdq(model, recipe.graphs[graph], ranges, only=frozenset(names))
    for value in model.graph.initializers.values():  # the file stands elsewhere than the weights it comes from
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    ir.save(model, file)
    return done.share


@dataclass(frozen=True, kw_only=True, eq=False)
class _Picture:
    """What is kept of a picture."""

    inputs: Mapping[str, Array]
    encoded: Mapping[str, Array]
    """FP32 outputs of both encoders."""
    embeddings: Mapping[str, Array]
    valid_size: tuple[int, int]
    labels: Array
    truth: Array | None


class _Run:
    """Runs pictures through graphs, one of which may be replaced."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        canvas: Size,
        pictures: SurveyedPictures,
        vocabulary: Vocabulary,
        background: Sequence[str],
    ) -> None:
        self._bundle = bundle
        self._backend = backend
        self._canvas = canvas
        self._source = pictures
        self._vocabulary = vocabulary
        self._background = np.array([name in set(background) for name in vocabulary.names])
        self._kept: list[_Picture] = []
        self._counts: Confusion | None = None

    def reference(self) -> None:
        """Run everything in FP32, and keep what variants need."""
        with self._opened((*SIZED_GRAPHS, OPEN_VOCAB_HEAD)) as graphs:
            for index in range(len(self._source)):
                taken = self._source.source.picture(self._source.places[index])
                height, width = taken.pixels.shape[:2]
                place = choose_canvas(height, width, [self._canvas])
                inputs: dict[str, Array] = {
                    "image": place_picture(taken.pixels, place)[None],
                    "valid_size": np.array([place.valid_size], np.int32),
                }
                encoded: dict[str, Array] = {}
                for name in (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER):
                    encoded.update(self._backend.run(graphs[name], inputs))
                decoded = self._backend.run(graphs[ADAB_DECODER], encoded)
                self._kept.append(
                    _Picture(
                        inputs=inputs,
                        encoded=encoded,
                        embeddings={name: decoded[name] for name in EMBEDDINGS},
                        valid_size=place.valid_size,
                        labels=self._labels(graphs, decoded, place.valid_size, (height, width)),
                        truth=taken.labels,
                    )
                )
        self._counts = self._confusion([kept.labels for kept in self._kept])

    def variant(self, graph: GraphName, file: Path) -> _Outcome:
        """Run all pictures with one graph's file replaced."""
        needed: tuple[GraphName, ...] = (ADAB_DECODER, OPEN_VOCAB_HEAD)
        cosines: list[float] = []
        labels: list[Array] = []
        with self._opened((graph, *(name for name in needed if name != graph)), {graph: file}) as graphs:
            for kept in self._kept:
                encoded = kept.encoded
                if graph != ADAB_DECODER:
                    encoded = {**encoded, **self._backend.run(graphs[graph], kept.inputs)}
                decoded = self._backend.run(graphs[ADAB_DECODER], encoded)
                labels.append(self._labels(graphs, decoded, kept.valid_size, kept.labels.shape))
                cosines += [_row_cosine(decoded[name], kept.embeddings[name]) for name in EMBEDDINGS]
        equal = sum(int((found == kept.labels).sum()) for found, kept in zip(labels, self._kept, strict=True))
        return _Outcome(
            label_agreement=equal / sum(found.size for found in labels),
            embedding_cosine=float(np.mean(cosines)),
            **self._figures(self._confusion(labels)),
        )

    def figures_of_reference(self) -> dict[str, float | None]:
        """mIoU in FP32."""
        return self._figures(self._counts)

    @contextmanager
    def _opened(
        self, names: Sequence[GraphName], files: Mapping[GraphName, Path] | None = None
    ) -> Iterator[dict[GraphName, OpenGraph]]:
        graphs: dict[GraphName, OpenGraph] = {}
        try:
            for name in names:
                size = self._canvas if name in SIZED_GRAPHS else None
                record = self._bundle.graph(name, size, self._bundle.precisions[0])
                file = (files or {}).get(name) or self._bundle.file(record.file)
                graphs[name] = self._backend.open(file, spec=record.spec, name=name)
            yield graphs
        finally:
            for graph in graphs.values():
                self._backend.close(graph)

    def _labels(
        self,
        graphs: Mapping[GraphName, OpenGraph],
        decoded: Mapping[str, Array],
        valid_size: tuple[int, int],
        shape: tuple[int, ...],
    ) -> Array:
        words = {"text_embeddings": self._vocabulary.text_embeddings, "seen": self._vocabulary.seen_flags}
        head = graphs[OPEN_VOCAB_HEAD]
        given = {tensor.name: {**decoded, **words}[tensor.name] for tensor in head.spec.inputs}
        shares = self._backend.run(head, given)["class_probabilities"]
        return label_map(decoded["mask_logits"][0], shares[0], self._canvas, valid_size, (shape[0], shape[1]))

    def _confusion(self, labels: Sequence[Array]) -> Confusion | None:
        if any(kept.truth is None for kept in self._kept):
            return None
        counts = Confusion(len(self._vocabulary.names))
        for kept, found in zip(self._kept, labels, strict=True):
            assert kept.truth is not None
            counts.add(kept.truth, found)
        return counts

    def _figures(self, counts: Confusion | None) -> dict[str, float | None]:
        if counts is None:
            return {"miou": None, "seen_miou": None, "new_miou": None}
        found = figures(counts, np.asarray(self._vocabulary.seen, bool), self._background)
        return {
            name: None if np.isnan(value) else value
            for name, value in (
                ("miou", found.miou), ("seen_miou", found.seen_miou), ("new_miou", found.new_miou)
            )
        }  # fmt: skip


def _row_cosine(first: Array, second: Array) -> float:
    """Mean over the rows of (1, Q, D) of their cosine; a row that is zero in both counts as 1."""
    a, b = first[0].astype(np.float64), second[0].astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    rows = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny))
    return float(rows.mean())
