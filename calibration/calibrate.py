"""One call from a bundle and pictures to a ranges file's content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import onnx

from ..contract import (
    ADAB_DECODER,
    CLIP_IMAGE_ENCODER,
    SAM_IMAGE_ENCODER,
    SIZED_GRAPHS,
    GraphName,
    GraphRecord,
    Size,
)
from ..errors import CalibrationError
from ..runtime.bundle import Bundle
from .cache import CachedRanges, cache_file, load_cached, ranges_key, store
from .collect import BUDGET_BYTES, collect_histograms
from .feeds import DecoderFeeds, Feeds, PictureFeeds, graph_hash
from .observers import MaxObserver, Observer, observed_range
from .ranges import GraphRanges, Range, Ranges
from .survey import SurveyedPictures

ChooseTensors = Callable[[Bundle, GraphRecord], Sequence[str]]
"""Which tensors of one of a bundle's graphs to observe."""

Progress = Callable[[str, int, int], None]
"""Called as progress(graph, runs done, runs in all)."""


def product_inputs(bundle: Bundle, record: GraphRecord) -> list[str]:
    """The activations that enter a product: MatMul, Gemm or Conv; what any recipe may quantise."""
    model = onnx.load(bundle.file(record.file), load_external_data=False)
    weights = {weight.name for weight in model.graph.initializer}
    found = [
        factor
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv")
        for factor in node.input[:2]
        if factor not in weights
    ]
    return list(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How to calibrate."""

    observer: Observer = field(default_factory=MaxObserver)
    graphs: tuple[GraphName, ...] = SIZED_GRAPHS
    """Of SIZED_GRAPHS: of the others, the head is 0.1 % of the work and the text encoder sees no picture."""
    sizes: tuple[Size, ...] | None = None
    """Canvases; all of the bundle's by default."""
    precision: str | None = None
    """Which of the bundle's precisions is observed; its first by default."""
    tensors: ChooseTensors = product_inputs
    encoders: Mapping[tuple[GraphName, Size], Path] | None = None
    """.onnx files of the encoders whose outputs the decoder is given, as quantised ones; the bundle's by default."""
    cache: Path | None = None
    """Folder where counts and ranges are kept: what was found before is not looked for again, and a broken-off
    calibration goes on. Nothing is kept without."""
    budget_bytes: int = BUDGET_BYTES
    """See collect_histograms."""
    threads: int | None = None


def calibrate(
    bundle: Bundle,
    pictures: SurveyedPictures,
    config: CalibrationConfig,
    *,
    progress: Progress = lambda graph, done, total: None,
    notice: Callable[[str], None] = lambda line: None,
) -> Ranges:
    """Observe a bundle's graphs on pictures.

    Args:
        bundle: has the graphs.
        pictures: made by `survey`.
        config: how.
        progress: see Progress.
        notice: called with one line for each graph whose ranges or counts were found in the cache.

    Raises:
        CalibrationError: a graph is quantised already; else see collect_histograms.
        BundleError: the bundle has not this precision, or not this canvas.
    """
    precision = bundle.precisions[0] if config.precision is None else config.precision
    for name in config.graphs:
        if name not in SIZED_GRAPHS:
            raise CalibrationError(f"graph {name}: is not calibrated", cure=f"choose from {', '.join(SIZED_GRAPHS)}")
    found = []
    sizes = bundle.sizes if config.sizes is None else config.sizes
    for size in sizes:
        on_canvas = PictureFeeds(pictures, size, batch=bundle.manifest.batch)
        for name in config.graphs:
            record = bundle.graph(name, size, precision)
            if record.compute is not None and record.compute.quantised:
                raise CalibrationError(f"graph {name}: is {record.precision} already", cure="give the FP32 bundle")
            label = name if len(sizes) == 1 else f"{name} {size}"
            observation = _Observation(
                bundle=bundle, record=record, label=label, pictures=pictures, config=config, notice=notice
            )
            report = partial(progress, label)
            if name != ADAB_DECODER:
                sha256, ranges = observation.ranges(on_canvas, report)
                found.append(GraphRanges(graph=name, size=size, sha256=sha256, ranges=ranges))
                continue
            encoders = _encoders(bundle, record, config)
            with DecoderFeeds(on_canvas, encoders, threads=config.threads) as feeds:
                sha256, ranges = observation.ranges(feeds, report)
                found.append(GraphRanges(graph=name, size=size, sha256=sha256, fed_by=feeds.hashes, ranges=ranges))
    return Ranges(
        model=bundle.model.name,
        precision=precision,
        observer=config.observer.spelling,
        pictures_from=pictures.source.name,
        pictures=pictures.records,
        graphs=tuple(found),
    )


@dataclass(frozen=True, kw_only=True)
class _Observation:
    """One graph to be observed."""

    bundle: Bundle
    record: GraphRecord
    label: str
    pictures: SurveyedPictures
    config: CalibrationConfig
    notice: Callable[[str], None]

    def ranges(self, feeds: Feeds, progress: Callable[[int, int], None]) -> tuple[str, dict[str, Range]]:
        """The graph's hash, and its ranges."""
        config, spelling = self.config, self.config.observer.spelling
        file = self.bundle.file(self.record.file)
        sha256 = graph_hash(file)
        tensors = list(dict.fromkeys(config.tensors(self.bundle, self.record)))
        key = ranges_key(sha256, tensors, feeds.identity, spelling)
        if config.cache is not None:
            cached = load_cached(config.cache, file.stem, key)
            if cached is not None and list(cached) == tensors:
                self.notice(f"graph {self.label}: ranges were found before: {cache_file(config.cache, file.stem, key)}")
                return sha256, dict(cached)
        histograms = collect_histograms(
            file,
            tensors,
            feeds,
            name=self.label,
            state=config.cache,
            budget_bytes=config.budget_bytes,
            threads=config.threads,
            progress=progress,
            notice=self.notice,
        )
        nodes = _producers(file)
        ranges = {
            tensor: msgspec.structs.replace(observed_range(histogram, config.observer), node=nodes.get(tensor, ""))
            for tensor, histogram in histograms.items()
        }
        if config.cache is not None:
            store(
                config.cache,
                CachedRanges(
                    key=key,
                    graph=file.stem,
                    graph_sha256=sha256,
                    data=feeds.identity,
                    pictures_from=self.pictures.source.name,
                    pictures=tuple(record.name for record in self.pictures.records),
                    observer=spelling,
                    ranges=ranges,
                ),
            )
        return sha256, ranges


def _producers(file: Path) -> dict[str, str]:
    """Tensor -> name of the node that computes it."""
    graph = onnx.load(file, load_external_data=False).graph
    return {tensor: node.name or node.op_type for node in graph.node for tensor in node.output}


def _encoders(bundle: Bundle, decoder: GraphRecord, config: CalibrationConfig) -> dict[GraphName, Path]:
    assert decoder.size is not None
    given = config.encoders or {}
    return {
        name: given.get((name, decoder.size)) or bundle.file(bundle.graph(name, decoder.size, decoder.precision).file)
        for name in (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER)
    }
