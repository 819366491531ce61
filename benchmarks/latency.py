"""How long a bundle takes, graph by graph and from decoded picture to label map, and how much memory it needs.

Order of events, so that nothing measured disturbs the next: load, warm-up, the pipeline end to end, peak memory, then
the label map and each graph by itself, with the inputs it had in the pipeline. The two image encoders share the cores
while the pipeline runs; a graph's own latency is without that company.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..contract import CLIP_IMAGE_ENCODER, GRAPH_NAMES, TEXT_ENCODER, Size
from ..errors import InputError
from ..runtime.backends import open_backend
from ..runtime.backends.tensorrt_backend import TensorRtBackend
from ..runtime.bundle import Bundle
from ..runtime.canvas import choose_canvas
from ..runtime.label_map import label_map
from ..runtime.segmenter import Segmenter
from ..runtime.vocabulary import Vocabulary
from .machine import Machine, describe_machine
from .memory import peak_rss_bytes, reset_peak_rss
from .statistics import LatencySummary
from .timed_backend import TimedBackend

Progress = Callable[[int, int], None]

BLOB_PIXELS = 32
"""Side of the colour patches of the synthetic picture, about."""


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """What to measure, and how often."""

    repeats: int = 20
    """Measured runs, of the pipeline and of each graph."""
    warmup: int = 3
    """Runs before them that do not count."""
    size: Size | None = None
    """Canvas; None lets the picture choose among the bundle's, or takes the first for a synthetic one."""
    backend: str = "auto"
    threads: int | None = None
    precision: str | None = None
    overlap: bool = True
    """The two image encoders at the same time."""
    sentinel: bool = True
    """See runtime.sentinel."""
    classes_count: int = 150
    """Length of the synthetic vocabulary."""
    seed: int = 0
    """Of the synthetic picture and vocabulary."""

    def __post_init__(self) -> None:
        for name, least in (("repeats", 1), ("warmup", 0), ("classes_count", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} is {getattr(self, name)}", cure=f"give --{name.replace('_', '-')} {least} or more"
                )


@dataclass(frozen=True, kw_only=True)
class GraphLatency:
    """One graph."""

    alone: LatencySummary
    pipeline: LatencySummary | None
    """While the pipeline ran; None for the text encoder, which has no part in it, and for engines that run as one."""


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """What was measured, on what, with what."""

    bundle: str
    model: str
    precision: str
    canvas: str
    picture: tuple[int, int]
    """Height and width of the picture and its label map."""
    classes: int
    vocabulary: str
    """Where the words come from: "synthetic", or what the caller says."""
    backend: str
    backend_reason: str
    threads: int | None
    """Asked for; None is the engine's own choice."""
    warmup: int
    end_to_end: LatencySummary
    """From decoded picture to label map, with a vocabulary that is encoded already."""
    graphs: dict[str, GraphLatency]
    label_map: LatencySummary
    """From mask logits and class probabilities to the label map, by itself."""
    load_ms: float
    """Opening the four graphs of the pipeline."""
    peak_rss_bytes: int
    """Of the process, from loading to the end of the pipeline's runs."""
    peak_rss_method: str
    rss_before_bytes: int
    """Peak of the process before anything was loaded."""
    machine: Machine

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_latency(
    bundle: Bundle,
    config: LatencyConfig,
    *,
    picture: npt.NDArray[np.uint8] | None = None,
    vocabulary: Vocabulary | None = None,
    vocabulary_name: str = "given",
    progress: Progress | None = None,
) -> LatencyReport:
    """Measure a bundle on this machine, in this process.

    Args:
        bundle: an open bundle.
        config: what to measure.
        picture: uint8 (H, W, 3) RGB; a synthetic one of the canvas's size by default.
        vocabulary: of this bundle's text encoder; random unit embeddings by default.
        vocabulary_name: what to call it in the report.
        progress: called with the runs done and the runs in all.

    Raises:
        BundleError: the bundle has no such canvas or precision.
        BackendError: the backend is missing or refuses a graph.
        VocabularyError: the vocabulary is another text encoder's.
    """
    report = progress or (lambda done, total: None)
    if config.size is not None:
        bundle.graph(CLIP_IMAGE_ENCODER, config.size, config.precision)
    synthetic = vocabulary is None
    if vocabulary is None:
        vocabulary = synthetic_vocabulary(bundle, config.classes_count, seed=config.seed)
    canvas = config.size
    if picture is None:
        canvas = canvas or bundle.sizes[0]
        picture = synthetic_picture(canvas, seed=config.seed)
    canvas = canvas or choose_canvas(picture.shape[0], picture.shape[1], bundle.sizes).canvas

    rss_before, _ = peak_rss_bytes()
    reset_peak_rss()
    runs, total = config.warmup + config.repeats, (config.warmup + config.repeats) * (2 + len(GRAPH_NAMES))
    inner = open_backend(config.backend, threads=config.threads)
    backend = TimedBackend(inner)
    # Engines keep their tensors on the GPU and run as one: taken apart by a timer they would be another pipeline.
    as_one = isinstance(inner, TensorRtBackend)
    load = partial(
        Segmenter.load,
        bundle,
        threads=config.threads,
        precision=config.precision,
        overlap=config.overlap,
        sentinel=config.sentinel,
    )
    with ExitStack() as opened:
        segmenter = opened.enter_context(load(backend=inner if as_one else backend))
        start = time.perf_counter()
        segmenter.warm_up(canvas)
        load_ms = (time.perf_counter() - start) * 1000
        end_to_end = []
        for i in range(runs):
            if i == config.warmup:
                backend.latencies_ms.clear()
            start = time.perf_counter()
            segmenter(picture, vocabulary, canvas=canvas)
            end_to_end.append((time.perf_counter() - start) * 1000)
            report(i + 1, total)
        peak, method = peak_rss_bytes()
        in_pipeline = {name: LatencySummary.of(values) for name, values in backend.latencies_ms.items()}

        backend.keep_inputs = True
        if as_one:
            segmenter.close()  # else their memory is taken twice
            segmenter = opened.enter_context(load(backend=backend))
        place = choose_canvas(picture.shape[0], picture.shape[1], (canvas,))
        prediction = segmenter.predict([picture], [place], vocabulary)
        label_map_ms = []
        for i in range(runs):
            start = time.perf_counter()
            label_map(
                prediction.mask_logits[0],
                prediction.class_probabilities[0],
                canvas,
                place.valid_size,
                (picture.shape[0], picture.shape[1]),
                threads=config.threads,
            )
            label_map_ms.append((time.perf_counter() - start) * 1000)
            report(runs + i + 1, total)
    graphs = _graphs_alone(bundle, config, canvas, backend.kept_inputs, lambda done: report(2 * runs + done, total))
    return LatencyReport(
        bundle=str(bundle.source),
        model=bundle.model.name,
        precision=config.precision or bundle.precisions[0],
        canvas=str(canvas),
        picture=(picture.shape[0], picture.shape[1]),
        classes=len(vocabulary),
        vocabulary="synthetic" if synthetic else vocabulary_name,
        backend=backend.name,
        backend_reason=backend.reason,
        threads=config.threads,
        warmup=config.warmup,
        end_to_end=LatencySummary.of(end_to_end[config.warmup :]),
        graphs={name: GraphLatency(alone=alone, pipeline=in_pipeline.get(name)) for name, alone in graphs.items()},
        label_map=LatencySummary.of(label_map_ms[config.warmup :]),
        load_ms=load_ms,
        peak_rss_bytes=peak,
        peak_rss_method=method,
        rss_before_bytes=rss_before,
        machine=describe_machine(),
    )


def _graphs_alone(
    bundle: Bundle,
    config: LatencyConfig,
    canvas: Size,
    inputs: dict[str, dict[str, npt.NDArray[Any]]],
    report: Callable[[int], None],
) -> dict[str, LatencySummary]:
    """Each graph with the cores to itself, one open at a time, with the inputs it had in the pipeline."""
    done = 0
    latencies: dict[str, LatencySummary] = {}
    for name in GRAPH_NAMES:
        record = bundle.graph(name, canvas, config.precision)
        given = inputs[name] if name != TEXT_ENCODER else {"tokens": _prompts_of_one_class(bundle, config.seed)}
        with open_backend(config.backend, threads=config.threads) as backend:
            graph = backend.open(backend.graph_file(bundle, record), spec=record.spec, name=name)
            values = []
            for _ in range(config.warmup + config.repeats):
                start = time.perf_counter()
                backend.run(graph, given)
                values.append((time.perf_counter() - start) * 1000)
                done += 1
                report(done)
        latencies[name] = LatencySummary.of(values[config.warmup :])
    return latencies


def synthetic_picture(size: Size, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Soft patches of random colour, uint8 (height, width, 3): regions with borders, as a photo has."""
    grid = (max(2, size.height // BLOB_PIXELS), max(2, size.width // BLOB_PIXELS))
    colours = np.random.default_rng(seed).integers(0, 256, size=(*grid, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((size.width, size.height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(image)


def synthetic_vocabulary(bundle: Bundle, classes: int, *, seed: int = 0) -> Vocabulary:
    """`classes` random unit embeddings that this bundle accepts; every other class counts as seen."""
    random = np.random.default_rng(seed)
    text = bundle.manifest.text
    rows = random.normal(size=(classes + 1, bundle.model.embedding_dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Vocabulary(
        names=tuple(f"class {i}" for i in range(classes)),
        synonyms=((),) * classes,
        seen=np.arange(classes) % 2 == 0,
        embeddings=rows[:-1],
        background=rows[-1:],
        model=bundle.model.name,
        encoder_sha256=text.encoder_sha256,
        templates=text.templates,
        logit_scale=bundle.model.logit_scale,
    )


def _prompts_of_one_class(bundle: Bundle, seed: int) -> npt.NDArray[np.int32]:
    """(templates, 77) int32 token ids, as many prompts as one class name needs; any ids take the same time."""
    shape = (len(bundle.manifest.text.templates), bundle.model.context_length)
    return np.random.default_rng(seed).integers(1, 400, size=shape, dtype=np.int32)
