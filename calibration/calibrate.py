"""One call from a bundle and pictures to a ranges file's content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from ..contract import (
    ADAB_DECODER,
    CLIP_IMAGE_ENCODER,
    SAM_IMAGE_ENCODER,
    GraphName,
    GraphRecord,
    Size,
)
from ..errors import CalibrationError
from ..runtime.bundle import Bundle
from .collect import BUDGET_BYTES, collect_histograms
from .feeds import DecoderFeeds, PictureFeeds, graph_hash
from .observers import MaxObserver, Observer, observed_range
from .ranges import GraphRanges, Range, Ranges
from .survey import SurveyedPictures

CALIBRATED_GRAPHS: tuple[GraphName, ...] = (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER, ADAB_DECODER)
"""Graphs that pictures pass through up to a product that is worth quantising; the head is 0.1 % of the work."""

ChooseTensors = Callable[[GraphName, onnx.ModelProto], Sequence[str]]
"""Which tensors of a graph to observe; the model comes without the content of its weights."""

Progress = Callable[[str, int, int], None]
"""Called as progress(graph, runs done, runs in all)."""


def product_inputs(graph: GraphName, model: onnx.ModelProto) -> list[str]:
    """The activations that enter a product with weights: MatMul, Gemm or Conv, one of whose factors is a weight."""
    weights = {weight.name for weight in model.graph.initializer}
    found = [
        factor
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv") and weights & set(node.input[:2])
        for factor in node.input[:2]
        if factor not in weights
    ]
    return list(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How to calibrate."""

    observer: Observer = field(default_factory=MaxObserver)
    graphs: tuple[GraphName, ...] = CALIBRATED_GRAPHS
    precision: str | None = None
    """Which of the bundle's precisions is observed; its first by default."""
    tensors: ChooseTensors = product_inputs
    encoders: Mapping[tuple[GraphName, Size], Path] | None = None
    """.onnx files of the encoders whose outputs the decoder is given, as quantised ones; the bundle's by default."""
    state: Path | None = None
    """Folder where counts are kept; see collect_histograms."""
    budget_bytes: int = BUDGET_BYTES
    threads: int | None = None


def calibrate(
    bundle: Bundle,
    pictures: SurveyedPictures,
    config: CalibrationConfig,
    *,
    progress: Progress = lambda graph, done, total: None,
) -> Ranges:
    """Observe a bundle's graphs on pictures.

    Raises:
        CalibrationError: see collect_histograms.
        BundleError: the bundle has not this precision.
    """
    precision = bundle.precisions[0] if config.precision is None else config.precision
    found = []
    for size in bundle.sizes:
        for name in config.graphs:
            record = bundle.graph(name, size, precision)
            found.append(_calibrate_graph(bundle, record, pictures, config, progress))
    return Ranges(
        model=bundle.model.name,
        precision=precision,
        observer=config.observer.spelling,
        pictures_from=pictures.source.name,
        pictures=pictures.records,
        graphs=tuple(found),
    )


def _calibrate_graph(
    bundle: Bundle, record: GraphRecord, pictures: SurveyedPictures, config: CalibrationConfig, progress: Progress
) -> GraphRanges:
    if record.name not in CALIBRATED_GRAPHS or record.size is None:
        raise CalibrationError(
            f"graph {record.name}: is not calibrated", cure=f"choose from {', '.join(CALIBRATED_GRAPHS)}"
        )
    file = bundle.file(record.file)
    on_canvas = PictureFeeds(pictures, record.size, batch=bundle.manifest.batch)
    label = str(record.name) if len(bundle.sizes) == 1 else f"{record.name} {record.size}"

    def collected(feeds: PictureFeeds | DecoderFeeds) -> dict[str, Range]:
        histograms = collect_histograms(
            file,
            config.tensors(record.name, onnx.load(file, load_external_data=False)),
            feeds,
            name=label,
            state=config.state,
            budget_bytes=config.budget_bytes,
            threads=config.threads,
            progress=lambda done, total: progress(label, done, total),
        )
        return {tensor: observed_range(histogram, config.observer) for tensor, histogram in histograms.items()}

    if record.name != ADAB_DECODER:
        return GraphRanges(graph=record.name, size=record.size, sha256=graph_hash(file), ranges=collected(on_canvas))
    with DecoderFeeds(on_canvas, _encoders(bundle, record, config), threads=config.threads) as feeds:
        ranges = collected(feeds)
        return GraphRanges(
            graph=record.name, size=record.size, sha256=graph_hash(file), fed_by=feeds.hashes, ranges=ranges
        )


def _encoders(bundle: Bundle, decoder: GraphRecord, config: CalibrationConfig) -> dict[GraphName, Path]:
    assert decoder.size is not None
    given = config.encoders or {}
    return {
        name: given.get((name, decoder.size)) or bundle.file(bundle.graph(name, decoder.size, decoder.precision).file)
        for name in (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER)
    }
