"""Recipes side by side: what each makes of a bundle's graphs in size, latency, agreement and accuracy.

Every derived bundle is held against the FP32 one in one run. A graph's two forms are timed in turn, so that a busy
machine slows both; the ratio is the median of the pairs' ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import ADAB_DECODER, GRAPH_NAMES, GraphName, Size
from ..errors import BundleError, InputError
from ..runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ..runtime.bundle import DERIVED_FROM_SEAL, Bundle
from ..runtime.segmenter import Segmenter
from ..runtime.verify import read_reference, reference_inputs
from ..runtime.vocabulary import Vocabulary
from .accuracy import AccuracyReport, measure_label_maps
from .label_maps import LabelMaps
from .labelled_sets import LabelledSet
from .machine import Machine, describe_machine

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]
"""Called as progress(what is measured, done, total)."""


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """What to measure."""

    repeats: int = 5
    """Timed pairs of runs of each graph; 0 leaves the latencies out."""
    warmup: int = 1
    """Pairs before them that do not count."""
    threads: int | None = None
    """For ONNX Runtime."""
    accuracy: bool = True
    """Whether the weights are trained, so that mIoU means something; agreement is measured in any case."""


@dataclass(frozen=True, kw_only=True)
class GraphRow:
    """One graph of one bundle."""

    graph: GraphName
    bytes: int
    """Of the .onnx file and its weights. Canvases share their weights, which are counted with each."""
    latency_ratio: float | None
    """FP32's latency over this one's: above 1 is faster."""
    ratio_min: float | None
    ratio_max: float | None


@dataclass(frozen=True, kw_only=True)
class PrecisionRow:
    """One bundle."""

    bundle: str
    precision: str
    emulated: bool
    bytes: int
    graphs: tuple[GraphRow, ...]
    label_agreement: float | None
    """Share of the pixels with the class FP32 gives, 0 to 1; None for FP32 itself or without pictures."""
    seen_miou: float | None
    new_miou: float | None
    harmonic_miou: float | None
    miou: float | None


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """A measurement; the first row is FP32."""

    model: str
    canvas: str
    dataset: str | None
    pictures: int
    repeats: int
    threads: int | None
    machine: Machine
    rows: tuple[PrecisionRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_precisions(
    bundles: Sequence[Bundle],
    config: PrecisionConfig,
    examples: LabelledSet | None = None,
    *,
    state: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> PrecisionReport:
    """Measure bundles that were derived from one.

    Args:
        bundles: the FP32 bundle, and those made of it by `ebseg quantize`.
        config: what to measure.
        examples: pictures for agreement and accuracy; both are left out without.
        state: folder where a broken-off measurement of accuracy is kept until all is done.

    Raises:
        InputError: the first bundle is not FP32, or another one was not made of it.
        BundleError: a bundle carries no references.
    """
    source = bundles[0]
    _check(bundles)
    canvas = source.sizes[0]
    inputs = _inputs(source, canvas, config.threads) if config.repeats else {}
    steps = 2 * len(bundles)
    graphs = []
    for number, bundle in enumerate(bundles):
        progress(f"timing {bundle.precisions[0]}", number, steps)
        graphs.append(tuple(_graph_row(source, bundle, name, canvas, config, inputs) for name in GRAPH_NAMES))
    found: list[AccuracyReport | None] = [None] * len(bundles)
    if examples is not None:
        found = _accuracies(bundles, config, examples, state, lambda what, done: progress(what, done, steps))
    rows = [_row(*each, config) for each in zip(bundles, graphs, found, strict=True)]
    progress("done", steps, steps)
    return PrecisionReport(
        model=source.model.name,
        canvas=str(canvas),
        dataset=None if examples is None else examples.name,
        pictures=0 if examples is None else len(examples),
        repeats=config.repeats,
        threads=config.threads,
        machine=describe_machine(),
        rows=tuple(rows),
    )


def _check(bundles: Sequence[Bundle]) -> None:
    source = bundles[0]
    if source.precisions != ("fp32",):
        raise InputError(
            f"bundle {source.source}: {', '.join(source.precisions)}, wanted FP32 first",
            cure="give the FP32 bundle before those made of it",
        )
    for other in bundles[1:]:
        if other.model != source.model or other.sizes[0] != source.sizes[0]:
            raise InputError(
                f"bundle {other.source}: {other.model.name} {other.sizes[0]}, not {source.model.name} "
                f"{source.sizes[0]} as {source.source}",
                cure="give bundles made of the first by `ebseg quantize`",
            )
        wanted, made_of = source.manifest.seal, other.manifest.provenance.get(DERIVED_FROM_SEAL)
        if made_of != wanted:
            before = "nothing that it tells" if made_of is None else f"the bundle sealed {made_of[:12]}…"
            raise InputError(
                f"bundle {other.source}: made of {before}, not of {source.source} (sealed {wanted[:12]}…)",
                cure="make it of this bundle with `ebseg quantize`, or give the bundle that it was made of",
            )


def _inputs(bundle: Bundle, canvas: Size, threads: int | None) -> dict[GraphName, dict[str, Array]]:
    """Every graph's inputs for the reference picture, as the FP32 graphs before it give them."""
    reference = next((each for each in bundle.manifest.references if each.size == canvas), None)
    if reference is None:
        raise BundleError(f"bundle {bundle.source}: no reference picture to time graphs on", cure="export it again")
    tensors = reference_inputs(read_reference(bundle, reference))
    found: dict[GraphName, dict[str, Array]] = {}
    with OnnxRuntimeBackend(threads=threads) as backend:
        for name in GRAPH_NAMES:
            record = bundle.graph(name, canvas, "fp32")
            graph = backend.open(bundle.file(record.file), spec=record.spec, name=name)
            found[name] = {tensor.name: tensors[tensor.name] for tensor in record.spec.inputs}
            tensors.update(backend.run(graph, found[name]))
            backend.close(graph)
    return found


def _graph_row(
    source: Bundle,
    bundle: Bundle,
    name: GraphName,
    canvas: Size,
    config: PrecisionConfig,
    inputs: Mapping[GraphName, Mapping[str, Array]],
) -> GraphRow:
    record = bundle.graph(name, canvas, bundle.precisions[0])
    files = [file for file in (record.file, record.weights) if file is not None]
    size = sum(bundle.manifest.files[file].bytes for file in files)
    ratios: list[float] = []
    if config.repeats and bundle is not source:
        ratios = _ratios(source, bundle, name, canvas, config, inputs[name])
    return GraphRow(
        graph=name,
        bytes=size,
        latency_ratio=float(np.median(ratios)) if ratios else None,
        ratio_min=min(ratios, default=None),
        ratio_max=max(ratios, default=None),
    )


def _ratios(
    source: Bundle,
    bundle: Bundle,
    name: GraphName,
    canvas: Size,
    config: PrecisionConfig,
    inputs: Mapping[str, Array],
) -> list[float]:
    with OnnxRuntimeBackend(threads=config.threads) as backend:
        opened = []
        for each in (source, bundle):
            record = each.graph(name, canvas, each.precisions[0])
            opened.append(backend.open(each.file(record.file), spec=record.spec, name=name))
        ratios = []
        for pair in range(config.warmup + config.repeats):
            seconds = []
            for graph in opened:
                start = time.perf_counter()
                backend.run(graph, inputs)
                seconds.append(time.perf_counter() - start)
            if pair >= config.warmup:
                ratios.append(seconds[0] / seconds[1])
        return ratios


def _accuracies(
    bundles: Sequence[Bundle],
    config: PrecisionConfig,
    examples: LabelledSet,
    state: Path | None,
    progress: Callable[[str, int], None],
) -> list[AccuracyReport | None]:
    """Of each bundle, held against FP32, which segments every picture once; of FP32 itself where mIoU is wanted."""
    states = [None if state is None else state / f".precision-{each.manifest.seal[:16]}.npz" for each in bundles]
    found: list[AccuracyReport | None] = []
    with Segmenter.load(bundles[0], "onnxruntime", threads=config.threads) as reference:
        fp32 = LabelMaps(reference, _words(reference, examples), keep=True)
        for number, (bundle, file) in enumerate(zip(bundles, states, strict=True)):
            progress(f"accuracy of {bundle.precisions[0]}", len(bundles) + number)
            if number == 0:
                found.append(measure_label_maps(fp32, examples, state=file) if config.accuracy else None)
                continue
            with Segmenter.load(bundle, "onnxruntime", threads=config.threads) as segmenter:
                maps = LabelMaps(segmenter, _words(segmenter, examples))
                found.append(measure_label_maps(maps, examples, against=fp32, state=file))
    for file in states:
        if file is not None:
            file.unlink(missing_ok=True)
    return found


def _words(segmenter: Segmenter, examples: LabelledSet) -> Vocabulary:
    return segmenter.vocabulary(examples.source, warn=lambda line: None)


def _row(
    bundle: Bundle, graphs: tuple[GraphRow, ...], found: AccuracyReport | None, config: PrecisionConfig
) -> PrecisionRow:
    agreement = None if found is None or found.agreement is None else found.agreement.pixel_agreement
    figures: dict[str, float | None] = dict.fromkeys(("seen_miou", "new_miou", "harmonic_miou", "miou"))
    if found is not None and config.accuracy:
        figures = {name: getattr(found.figures, name) for name in figures}
    compute = bundle.graph(ADAB_DECODER, bundle.sizes[0], bundle.precisions[0]).compute
    return PrecisionRow(
        bundle=str(bundle.source),
        precision=bundle.precisions[0],
        emulated=compute is not None and compute.emulated,
        bytes=sum(file.bytes for file in bundle.manifest.files.values()),
        graphs=graphs,
        label_agreement=agreement,
        **figures,
    )
