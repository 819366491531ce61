"""From a request to engines on disk: check, keep what is there, build the rest, count, and only then name it."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ... import __version__
from ...contract import ENGINE_SCHEMA_VERSION, MERGED, EngineMemory, EngineSidecar, FileRecord
from ...errors import BackendError, EbsegError, ExportError, InputError
from ...runtime.atomic_write import write_atomically
from ...runtime.engine_file import check_engine, host_platform, sidecar_path
from ...runtime.hashing import file_sha256
from ..owner_mark import is_abandoned, owner_mark
from .census import check_engine_promise
from .job import BuildJob, Built
from .layer_report import read_layers, read_memory
from .plan import BuildRequest, Plan, PlannedEngine, check_early, plan_build
from .process import run_job
from .standalone import gpu_capability
from .targets import Target, target_named

Progress = Callable[[str, int, int], None]
"""Called as progress(step, done, total), in hundredths of a graph."""

PROCESS_BYTES = 600 << 20
"""Resident memory of a builder with a graph of small weights; measured: 200 to 420 MiB."""
TIMING_CACHE = "timing.cache"
BYTES_PER_WEIGHT_BYTE = 4
"""Further resident memory, over the weights' size; with it EBSeg-B 640x640 stays below in FP32 and FP16."""
BYTES_PER_MERGED_WEIGHT_BYTE = 9
"""The same for a merged graph, which ONNX Runtime runs first and widens on a CPU; measured on EBSeg-B in FP16: 8.3."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine on disk."""

    plan: Path
    sidecar: EngineSidecar
    kept: bool
    """It was there already, of the same graph, settings and TensorRT."""


def build_engines(request: BuildRequest, *, progress: Progress = lambda step, done, total: None) -> list[Engine]:
    """Build what the request asks for; engines that are there already, of the same making, are kept.

    An engine appears with its sidecar only when it is whole and its layers compute in the types the precision
    promises. After an error or Ctrl-C the engines finished before stay, and the next call goes on from there.

    Raises:
        BundleError, InputError: as `plan_build`.
        BackendError: the target's module is missing or does not load, or there is no GPU where one is needed.
        ExportError: a builder refused or died, memory or disk are too small, or the census found a broken promise.
    """
    check_early(request)
    target = target_named(request.target)
    version = installed_version(target)
    here: tuple[str, ...] = ()
    if not request.compute_capabilities and not target.default_capabilities:
        found = gpu_capability()
        if found is None:
            raise BackendError(
                f"target {target.name}: it builds for the GPU at hand, and this machine has none",
                cure=f"run `ebseg build --target {target.name} --script` here and what it writes on the device",
            )
        here = (found,)
    plan = plan_build(request, capabilities=here)
    _prepare(plan.folder)
    total = 100 * len(plan.engines)
    engines = []
    for i, planned in enumerate(plan.engines):
        progress(planned.label, 100 * i, total)
        engine = None if request.rebuild else _kept(plan, planned, version)
        if engine is None:

            def watch(fraction: float, phase: str, start: int = 100 * i, label: str = planned.label) -> None:
                progress(f"{label}, {phase.lower()}", start + int(99 * fraction), total)

            engine = _build(plan, planned, request, watch)
        engines.append(engine)
    progress("done", total, total)
    return engines


def installed_version(target: Target) -> str:
    """The version of the target's Python module, asked in a process of its own: importing it costs 1 GB of libraries.

    Raises:
        BackendError: it is missing, or does not load.
    """
    if importlib.util.find_spec(target.module) is None:
        raise BackendError(f"target {target.name}: {target.module} is not installed", cure=target.install)
    code = f"import {target.module} as m; print('version', m.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    match = re.search(r"^version (\S+)$", done.stdout, re.MULTILINE)
    if done.returncode or match is None:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BackendError(
            f"target {target.name}: {target.module} is installed but does not load: {reason}",
            cure=f"reinstall it: {target.install}",
        )
    return match[1]


def _prepare(folder: Path) -> None:
    """Make the folder, and clear what killed builds left in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in list(folder.glob(".*.partial")):
            if is_abandoned(path, path.name.split(".")[-2]):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise InputError(
            f"output folder {folder}: {error.strerror}", cure="choose another folder with -o, or change its rights"
        ) from error


def _kept(plan: Plan, planned: PlannedEngine, version: str) -> Engine | None:
    """The engine that is there already, if building it again would make the same."""
    path = plan.folder / planned.name
    try:
        sidecar = check_engine(path, source=planned.source)
        made = (sidecar.graph, sidecar.size, sidecar.precision, sidecar.spec, sidecar.compute, sidecar.settings)
        wanted = (planned.graph, planned.size, plan.precision, planned.spec, planned.compute, planned.settings)
        if made != wanted:
            return None
        if (sidecar.target, sidecar.tensorrt_version, sidecar.platform) != (plan.target.name, version, host_platform()):
            return None
        check_engine_promise(sidecar)
    except EbsegError:
        return None
    return Engine(plan=path, sidecar=sidecar, kept=True)


def _build(plan: Plan, planned: PlannedEngine, request: BuildRequest, watch: Callable[[float, str], None]) -> Engine:
    path = plan.folder / planned.name
    log_path = path.with_suffix(".build.log")
    mark = owner_mark()
    partial = path.with_name(f".{path.name}.{mark}.partial")
    partial_log = path.with_name(f".{log_path.name}.{mark}.partial")
    if request.preflight:
        check_memory(plan, planned)
    _check_disk(plan, planned)
    try:
        try:
            if planned.graph == MERGED:
                watch(0.0, "merging the graphs")
            with _graph_file(plan, planned) as graph_file:
                job = BuildJob(
                    module=plan.target.module,
                    target=plan.target.name,
                    graph=planned.graph,
                    graph_file=str(graph_file),
                    spec=planned.spec,
                    settings=planned.settings,
                    plan_file=str(partial),
                    log_file=str(partial_log),
                    timing_cache=_timing_cache(plan, request),
                )
                built = run_job(job, label=planned.label, log_name=log_path, watch=watch)
            sidecar = _sidecar(plan, planned, request, built, partial, partial_log)
            check_engine_promise(sidecar)
        except ExportError:
            if partial_log.exists():
                os.replace(partial_log, log_path)  # the reason is in it
            raise
        # The sidecar last: a plan whose sidecar is missing or of another plan is refused and built again.
        os.replace(partial_log, log_path)
        os.replace(partial, path)
        write_atomically(sidecar_path(path), msgspec.json.format(msgspec.json.encode(sidecar), indent=1) + b"\n")
    except OSError as error:
        raise ExportError(
            f"engine {planned.label}: {path} cannot be written: {error.strerror}",
            cure="free some space, or give -o on another disk",
        ) from error
    finally:
        for leftover in (partial, partial_log):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
    return Engine(plan=path, sidecar=sidecar, kept=False)


@contextlib.contextmanager
def _graph_file(plan: Plan, planned: PlannedEngine) -> Iterator[Path]:
    """The graph to build: the bundle's own, or for the time of the build a merged one, held against its parts."""
    if planned.graph != MERGED:
        yield plan.bundle.file(planned.records[0].file)
        return
    from ..merge import write_merged

    assert planned.size is not None
    folder = plan.folder / f".{planned.name}.graph.{owner_mark()}.partial"
    try:
        write_merged(plan.bundle, planned.size, plan.precision, folder / f"{MERGED}.{planned.size}.onnx")
        yield folder / f"{MERGED}.{planned.size}.onnx"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _timing_cache(plan: Plan, request: BuildRequest) -> str | None:
    """Where the builder keeps the times it measured, if it measures any; TensorRT itself tells devices apart."""
    if not (plan.target.timing_cache and request.use_timing_cache):
        return None
    return str(request.timing_cache or plan.folder / TIMING_CACHE)


def check_memory(plan: Plan, planned: PlannedEngine) -> None:
    """Before minutes of work: room for the builder, or to hold a merged graph against its parts.

    Raises:
        ExportError: there is too little.
    """
    import psutil

    factor = BYTES_PER_MERGED_WEIGHT_BYTE if planned.graph == MERGED else BYTES_PER_WEIGHT_BYTE
    needed = PROCESS_BYTES + factor * _weights_bytes(plan, planned)
    available = psutil.virtual_memory().available
    if available < needed:
        raise ExportError(
            f"engine {planned.label}: {available / 1e9:.1f} GB of memory available, about {needed / 1e9:.1f} GB needed",
            cure="close other programs, build on a larger machine, or give --no-preflight",
        )


def _weights_bytes(plan: Plan, planned: PlannedEngine) -> int:
    return sum(plan.bundle.manifest.files[file].bytes for file in planned.source)


def _check_disk(plan: Plan, planned: PlannedEngine) -> None:
    weights = _weights_bytes(plan, planned)
    free, wanted = shutil.disk_usage(plan.folder).free, int(1.1 * weights) + (32 << 20)
    if free < wanted:
        raise ExportError(
            f"engine {planned.label}: {free / 1e9:.2f} GB free in {plan.folder}, {wanted / 1e9:.2f} GB needed",
            cure="free some space, or give -o on another disk",
        )


def _sidecar(
    plan: Plan, planned: PlannedEngine, request: BuildRequest, built: Built, partial: Path, log: Path
) -> EngineSidecar:
    with log.open(encoding="utf-8", errors="replace") as lines:
        memory = read_memory(lines)
    with log.open(encoding="utf-8", errors="replace") as lines:
        layers = read_layers(lines)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return EngineSidecar(
        schema_version=ENGINE_SCHEMA_VERSION,
        plan=FileRecord(bytes=partial.stat().st_size, sha256=file_sha256(partial)),
        graph=planned.graph,
        precision=plan.precision,
        size=planned.size,
        model=plan.bundle.model.name,
        spec=planned.spec,
        source=planned.source,
        target=plan.target.name,
        tensorrt_version=built.tensorrt_version,
        platform=host_platform(),
        settings=msgspec.structs.replace(planned.settings, compute_capabilities=built.compute_capabilities),
        memory=EngineMemory(
            weights_bytes=memory.get("weights"),
            activation_bytes=memory.get("activation"),
            scratch_bytes=memory.get("scratch"),
            builder_peak_bytes=built.peak_bytes,
        ),
        layers=layers,
        quantised_nodes=built.quantised_nodes,
        compute=planned.compute,
        build_seconds=round(built.seconds, 2),
        provenance={
            "ebseg-deploy": __version__,
            "built": now,
            **({"command": request.command} if request.command else {}),
        },
    )
