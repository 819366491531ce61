"""A folder to build from on a device that has TensorRT and nothing of ours: graphs, trtexec lines, a Python script."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from ... import __version__
from ...contract import ENGINE_SCHEMA_VERSION, ENGINES_FOLDER, MERGED
from ...errors import InputError
from . import standalone
from .build import TIMING_CACHE, check_memory
from .plan import BuildRequest, Plan, PlannedEngine, plan_build

README = """\
# Engines of {model}, {precision}, built on the device

Made by ebseg-deploy {version} for {target}{gpus}. Needs TensorRT 10.3 or newer and 64-bit Linux; nothing of
ebseg-deploy. JetPack 6 has TensorRT 10.3 with its Python module and trtexec (/usr/src/tensorrt/bin).

One of the two:

    python3 build.py                    # TensorRT's Python module; writes plans, logs and sidecars
    sh build.sh && python3 build.py --seal    # trtexec, then the sidecars

A plan is good for the TensorRT and the kind of GPU it was built on, and for no other. Then copy `{folder}` into the
bundle's folder, where the runtime looks for it:

    cp -r engines BUNDLE/

`ebseg inspect {folder}/….plan` on any machine reads the builder's log beside the plan and says which types its layers
compute in. `sh check.sh` compares TensorRT with ONNX Runtime on random inputs (`pip install polygraphy onnxruntime`).
"""


def write_script(request: BuildRequest, output: Path) -> Path:
    """Write the folder.

    Args:
        request: as for build_engines; its target must be `tensorrt`, and its output is not used.
        output: the folder to make.

    Returns:
        The folder, complete: it takes its name last.

    Raises:
        InputError: the folder exists or cannot be written, or the target needs no script.
        BundleError: see plan_build.
        ExportError: a merged graph could not be made, or there is too little memory to check it.
    """
    if request.target != "tensorrt":
        raise InputError(
            f"--script: {request.target} builds on any machine", cure="leave --script out, or give --target tensorrt"
        )
    if request.timing_cache is not None:
        raise InputError(
            f"--timing-cache {request.timing_cache}: on the device it lies beside the engines",
            cure="leave it out, or give none",
        )
    output = Path(os.path.abspath(output))
    if os.path.exists(output):
        raise InputError(f"--script: {output} exists", cure="give another -o")
    plan = plan_build(dataclasses.replace(request, output=output))
    for engine in plan.engines if request.preflight else ():
        if engine.graph == MERGED:  # held against its parts here; the others are only copied
            check_memory(plan, engine)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        _write(plan, request, partial)
        partial.rename(output)
    except OSError as error:
        raise InputError(
            f"--script: {output} cannot be written: {error.strerror}", cure="free some space, or give another -o"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def _write(plan: Plan, request: BuildRequest, folder: Path) -> None:
    place = f"{ENGINES_FOLDER}/{plan.target.name}/{plan.precision}"
    for file in dict.fromkeys(file for engine in plan.engines for file in _copied(engine)):
        copy = folder / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(plan.bundle.file(file), copy)
    for engine in plan.engines:
        if engine.graph == MERGED:
            from ..merge import write_merged

            assert engine.size is not None
            write_merged(plan.bundle, engine.size, plan.precision, folder / _graph_file(engine))
    jobs = [_job(plan, engine, request, f"{place}/{engine.name}") for engine in plan.engines]
    (folder / "jobs.json").write_bytes(msgspec.json.format(msgspec.json.encode(jobs), indent=1) + b"\n")
    shutil.copyfile(standalone.__file__, folder / "build.py")
    (folder / "build.sh").write_text(_shell(jobs), encoding="utf-8")
    (folder / "check.sh").write_text(_check(jobs), encoding="utf-8")
    gpus = ", ".join(request.compute_capabilities)
    (folder / "README.md").write_text(
        README.format(
            model=plan.bundle.model.name,
            precision=plan.precision,
            version=__version__,
            target=plan.target.name,
            gpus=f", compute capability {gpus}" if gpus else "",
            folder=place,
        ),
        encoding="utf-8",
    )
    for name in ("build.py", "build.sh", "check.sh"):
        (folder / name).chmod(0o755)


def _graph_file(engine: PlannedEngine) -> str:
    """Where the engine's graph lies in the folder; a merged one beside the weights it refers to."""
    file = engine.records[0].file
    return str(PurePosixPath(file).with_name(f"{MERGED}.{engine.size}.onnx")) if engine.graph == MERGED else file


def _copied(engine: PlannedEngine) -> list[str]:
    """The bundle's files that the folder needs; a merged graph brings its own."""
    return [] if engine.graph == MERGED else list(engine.source)


def _job(plan: Plan, engine: PlannedEngine, request: BuildRequest, plan_file: str) -> dict[str, Any]:
    """A job for standalone.main: paths relative to the folder, and what the sidecar can say beforehand."""
    provenance = {"ebseg-deploy": __version__, "built with": "ebseg build --script"}
    if request.command:
        provenance["command"] = request.command
    job: dict[str, Any] = msgspec.to_builtins(
        {
            "module": plan.target.module,
            "target": plan.target.name,
            "graph_file": _graph_file(engine),
            "spec": engine.spec,
            "settings": engine.settings,
            "plan_file": plan_file,
            "timing_cache": str(PurePosixPath(plan_file).with_name(TIMING_CACHE)) if request.use_timing_cache else None,
            "sidecar": {
                "schema_version": ENGINE_SCHEMA_VERSION,
                "graph": engine.graph,
                "precision": plan.precision,
                "size": engine.size,
                "model": plan.bundle.model.name,
                "spec": engine.spec,
                "source": engine.source,
                "compute": engine.compute,
                "target": plan.target.name,
                "provenance": provenance,
            },
        }
    )
    return job


def _shapes(job: dict[str, Any]) -> list[str]:
    """trtexec's three options for a graph with dynamic lengths."""
    dynamic = [each for each in job["spec"]["inputs"] if any(isinstance(length, str) for length in each["shape"])]
    if not dynamic:
        return []
    options = []
    for i, which in enumerate(("min", "opt", "max")):
        parts = (f"{each['name']}:{'x'.join(map(str, _lengths(job, each)[i]))}" for each in dynamic)
        options.append(f"--{which}Shapes={','.join(parts)}")
    return options


def _lengths(job: dict[str, Any], tensor: dict[str, Any]) -> list[tuple[int, ...]]:
    return standalone.profile_shapes(tensor["shape"], job["settings"]["profile"])


def _shell(jobs: list[dict[str, Any]]) -> str:
    lines = [
        "#!/bin/sh",
        "# Build every engine with trtexec. A plan takes its name when it is whole; one that is there is kept.",
        "set -eu",
        'cd "$(dirname "$0")"',
        'TRTEXEC="${TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}"',
        '[ -x "$TRTEXEC" ] || { echo "no trtexec: set TRTEXEC to its path" >&2; exit 1; }',
        "",
        "build() {  # graph, plan, options…",
        '    graph=$1 plan=$2; shift 2; log="${plan%.plan}.build.log"',
        '    if [ -f "$plan" ]; then echo "$plan is there"; return; fi',
        '    echo "$plan …"',
        '    if ! "$TRTEXEC" --onnx="$graph" --saveEngine="$plan.partial" --stronglyTyped --skipInference --verbose \\',
        '        --profilingVerbosity=detailed "$@" > "$log" 2>&1; then',
        '        rm -f "$plan.partial"; tail -n 5 "$log" >&2; echo "$plan failed; see $log" >&2; exit 1',
        "    fi",
        '    mv "$plan.partial" "$plan"',
        "}",
        "",
    ]
    lines += [f"mkdir -p {folder}" for folder in dict.fromkeys(str(Path(job["plan_file"]).parent) for job in jobs)]
    for job in jobs:
        settings = job["settings"]
        words = ["build", job["graph_file"], job["plan_file"], *_shapes(job)]
        if job["timing_cache"] is not None:
            words.append(f"--timingCacheFile={job['timing_cache']}")
        if not settings["tf32"]:
            words.append("--noTF32")
        if settings["workspace_bytes"] is not None:
            words.append(f"--memPoolSize=workspace:{max(1, settings['workspace_bytes'] >> 20)}M")
        lines.append(shlex.join(words))
    return "\n".join(lines) + "\n"


def _check(jobs: list[dict[str, Any]]) -> str:
    lines = [
        "#!/bin/sh",
        "# Hold TensorRT against ONNX Runtime on random inputs, graph by graph.",
        "set -eu",
        'cd "$(dirname "$0")"',
    ]
    for job in jobs:
        inputs = job["spec"]["inputs"]
        shapes = [f"{each['name']}:[{','.join(map(str, _lengths(job, each)[1]))}]" for each in inputs]
        tolerance = "1e-3" if job["sidecar"]["precision"] == "fp32" else "5e-2"
        words = ["polygraphy", "run", job["graph_file"], "--trt", "--strongly-typed", "--onnxrt"]
        words += ["--input-shapes", *shapes, "--atol", tolerance, "--rtol", tolerance]
        lines.append(shlex.join(words))
    return "\n".join(lines) + "\n"
