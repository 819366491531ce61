"""What `ebseg build` was asked for, held against bundle, target and GPUs, and spelt out engine by engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...contract import (
    ENGINES_FOLDER,
    GRAPH_NAMES,
    MERGED,
    SIZED_GRAPHS,
    TEXT_ENCODER,
    ComputeRecord,
    DimensionRange,
    EngineName,
    EngineSettings,
    EngineTarget,
    GraphName,
    GraphRecord,
    GraphSpec,
    Size,
)
from ...errors import InputError
from ...runtime.bundle import Bundle
from ...runtime.engine_file import plan_name
from ..merged_spec import MERGED_GRAPHS, merged_spec
from .profiles import DEFAULTS, batch_range, profile_for
from .promise import Promise, promise_of
from .targets import NEWEST_OPSET, PRECISIONS, Target, check_support, target_named


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What `ebseg build` was asked for."""

    bundle: Path
    target: EngineTarget
    precision: str | None = None
    """One of the bundle's; its first by default."""
    compute_capabilities: tuple[str, ...] = ()
    """None takes the target's own: portable over RTX GPUs, or the GPU at hand."""
    ranges: Mapping[str, DimensionRange] = field(default_factory=dict)
    """Lengths of dynamic dimensions; profiles.DEFAULTS for those not given, and profiles.batch_range for the batch."""
    workspace_bytes: int | None = None
    tf32: bool = False
    keep_fp32: tuple[str, ...] = ()
    """Patterns of ONNX node names that may run in FP32."""
    graphs: tuple[GraphName, ...] = ()
    """None is all."""
    merged: bool = False
    """One engine from picture and words to mask logits and class probabilities, and the text encoder."""
    output: Path | None = None
    """None is engines/<target>/<precision>/ in the bundle."""
    rebuild: bool = False
    """Build even what is there already."""
    preflight: bool = True
    """Refuse to start with too little memory."""
    timing_cache: Path | None = None
    """A file; None is one beside the engines."""
    use_timing_cache: bool = True
    command: str = ""
    """For the provenance."""


@dataclass(frozen=True, kw_only=True)
class PlannedEngine:
    """One engine that a request asks for."""

    graph: EngineName
    size: Size | None
    records: tuple[GraphRecord, ...]
    """The graph it is made of; of a merged engine those of MERGED_GRAPHS."""
    spec: GraphSpec
    source: dict[str, str]
    settings: EngineSettings
    name: str
    """File name of the plan."""
    precision: str

    @property
    def label(self) -> str:
        return f"{self.graph} {self.size}" if self.size else self.graph

    @property
    def compute(self) -> dict[GraphName, ComputeRecord | None]:
        """What its graphs say they compute in."""
        return {record.name: record.compute for record in self.records}

    @property
    def promise(self) -> Promise:
        """What it must compute in."""
        return promise_of(self.graph, self.precision, self.compute, self.settings.keep_fp32)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request, checked and spelt out."""

    bundle: Bundle
    target: Target
    precision: str
    folder: Path
    engines: tuple[PlannedEngine, ...]


def check_early(request: BuildRequest, capabilities: Sequence[str] = ()) -> None:
    """Refuse what can be refused without reading the bundle.

    Raises:
        InputError: a compute capability that is unknown or not the target's, or that lacks the precision; options that
            contradict one another or the target.
    """
    target = target_named(request.target)
    known = request.precision if request.precision in PRECISIONS else None
    check_support(target, request.compute_capabilities or capabilities, known)
    if request.timing_cache is not None and not target.timing_cache:
        raise InputError(
            f"--timing-cache {request.timing_cache}: {target.name} times no kernels and keeps no cache",
            cure="leave it out",
        )
    if request.merged and request.graphs:
        raise InputError(
            f"--graph {request.graphs[0]}: a merged engine has all graphs", cure="leave --graph or --merged out"
        )


def plan_build(request: BuildRequest, *, capabilities: Sequence[str] | None = None) -> Plan:
    """Check a request against the bundle, the target and the GPUs; nothing is built.

    Args:
        request: what was asked for.
        capabilities: compute capabilities that stand for the target's default.

    Raises:
        BundleError: the bundle is damaged, or has no such precision.
        InputError: what the target or a GPU cannot do, lengths the graphs do not take, or an opset that TensorRT's
            parser gets wrong.
        ExportError: neither a graph nor its precision's name says what it is to compute in.
    """
    target = target_named(request.target)
    chosen = request.compute_capabilities or tuple(capabilities or target.default_capabilities)
    check_early(request, chosen)
    bundle = Bundle.open(request.bundle)
    precision = request.precision or bundle.precisions[0]
    if request.output is None and not bundle.source.is_dir():
        raise InputError(f"bundle {bundle.source}: engines cannot go into a zip", cure="give -o FOLDER")
    folder = request.output or bundle.source / ENGINES_FOLDER / target.name / precision
    ranges = {**DEFAULTS, **request.ranges, "batch": batch_range(bundle, request.ranges.get("batch"))}
    engines = []
    for graph, size, records in _wanted(request, bundle, precision):
        spec = merged_spec(records) if graph == MERGED else records[0].spec
        settings = EngineSettings(
            compute_capabilities=chosen,
            profile=profile_for(spec, ranges),
            workspace_bytes=request.workspace_bytes,
            tf32=request.tf32,
            keep_fp32=request.keep_fp32,
            static_memory=target.static_memory,
        )
        planned = PlannedEngine(
            graph=graph,
            size=size,
            records=records,
            spec=spec,
            source={file: digest for record in records for file, digest in bundle.graph_hashes(record).items()},
            settings=settings,
            name=plan_name(graph, size),
            precision=precision,
        )
        _check_graphs(planned, target, chosen)
        engines.append(planned)
    return Plan(bundle=bundle, target=target, precision=precision, folder=folder, engines=tuple(engines))


def _wanted(
    request: BuildRequest, bundle: Bundle, precision: str
) -> list[tuple[EngineName, Size | None, tuple[GraphRecord, ...]]]:
    """Engines to make, and the graphs of each."""
    wanted: list[tuple[EngineName, Size | None, tuple[GraphRecord, ...]]] = []
    if request.merged:
        for size in bundle.sizes:
            wanted.append((MERGED, size, tuple(bundle.graph(name, size, precision) for name in MERGED_GRAPHS)))
        return [*wanted, (TEXT_ENCODER, None, (bundle.graph(TEXT_ENCODER, None, precision),))]
    for name in GRAPH_NAMES:
        if request.graphs and name not in request.graphs:
            continue
        sizes: tuple[Size | None, ...] = bundle.sizes if name in SIZED_GRAPHS else (None,)
        wanted += [(name, each, (bundle.graph(name, each, precision),)) for each in sizes]
    return wanted


def _check_graphs(planned: PlannedEngine, target: Target, capabilities: Sequence[str]) -> None:
    for record in planned.records:
        if record.opset > NEWEST_OPSET:
            raise InputError(
                f"graph {record.file}: opset {record.opset} is too new, TensorRT is right up to {NEWEST_OPSET}: "
                "GridSample would sample the nearest pixel",
                cure="export the bundle again with this release",
            )
        if record.compute is not None and (record.compute.emulated or record.compute.dynamic):
            what = "emulates its precision in FP32" if record.compute.emulated else "has ONNX Runtime's own operators"
            raise InputError(
                f"graph {record.file}: {what}: it is for CPUs",
                cure="make the bundle with `ebseg quantize --recipe fp16`, without --emulate",
            )
    for record, part in zip(planned.records, planned.promise.parts, strict=True):
        for type_name in (part.base, part.quantised):
            try:
                check_support(target, capabilities, type_name)
            except InputError as error:
                raise InputError(
                    f"graph {record.name}: {error.message}", cure="build for other GPUs, or the other graphs (--graph)"
                ) from error
