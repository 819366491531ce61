"""Build a plan with TensorRT's Python module and the standard library alone.

This file has two lives. `ebseg build` runs it inside its building process. `ebseg build --script` copies it, as
build.py, into a folder for a device that has TensorRT and nothing of ours:

    python3 build.py          # every job of jobs.json: a plan, its log and its sidecar each
    python3 build.py --seal   # sidecars alone, for plans that trtexec made

One code path serves TensorRT 10.3 and later, 11 and RTX: what only some of them have is asked for with hasattr.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import hashlib
import importlib
import json
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TextIO

DTYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FLOAT", "float16": "HALF"}
LEVELS = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
Job = dict[str, Any]
"""A job.BuildJob as JSON gives it."""


class BuildRefusedError(Exception):
    """No plan can be made of this job here. `cure` is what to do about it."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self.cure = cure


class Listener(Protocol):
    """Hears of a builder's phases."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins."""

    def step(self, phase: str, step: int) -> bool:
        """A step of it is done; False stops the builder."""

    def finish(self, phase: str) -> None:
        """It ends."""


def build_plan(module: Any, job: Job, log: TextIO, listener: Listener | None = None) -> dict[str, Any]:
    """Parse, configure, build and write one plan.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        job: what to build.
        log: takes every message of the builder, line by line.
        listener: told of progress where the module can.

    Returns:
        `tensorrt_version`, `compute_capabilities`, `quantised_nodes`, `seconds`, `peak_bytes`.

    Raises:
        BuildRefusedError: the parser, the border check, the builder or the disk refuses.
    """
    started = time.monotonic()
    logger = _logger(module, log)
    builder = module.Builder(logger)
    network = builder.create_network(_network_flags(module))
    parser = module.OnnxParser(network, logger)
    if not parser.parse_from_file(job["graph_file"]):
        raise BuildRefusedError(f"the parser refuses it: {_parser_error(parser)}", "export the bundle again")
    _check_border(module, network, job["spec"])
    quantised = _quantised_nodes(module, network)
    config = builder.create_builder_config()
    _configure(module, builder, config, job)
    monitor = None
    if listener is not None and hasattr(module, "IProgressMonitor") and hasattr(config, "progress_monitor"):
        monitor = _monitor(module, listener)
        config.progress_monitor = monitor
    capabilities = _choose_capabilities(module, config, job["settings"]["compute_capabilities"])
    cache = _timing_cache(config, job.get("timing_cache"), log)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildRefusedError("the builder gave no engine", "see the log for the reason")
    if cache is not None:
        _keep_timing_cache(cache, job["timing_cache"], log)
    try:
        with open(job["plan_file"], "wb") as file:
            file.write(plan)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise BuildRefusedError(
            f"the plan of {plan.nbytes / 1e6:.0f} MB cannot be written: {error.strerror}",
            "free some space, or write to another disk",
        ) from error
    return {
        "tensorrt_version": str(module.__version__),
        "compute_capabilities": capabilities,
        "quantised_nodes": quantised,
        "seconds": time.monotonic() - started,
        "peak_bytes": _peak_bytes(),
    }


def _parser_error(parser: Any) -> str:
    if not parser.num_errors:
        return "no reason given"
    error = parser.get_error(0)
    node = " ".join(str(getattr(error, what)()) for what in ("node_operator", "node_name") if hasattr(error, what))
    return f"node {node}: {error.desc()}" if node.strip() else str(error.desc())


def _network_flags(module: Any) -> int:
    """Strong typing, which is all that TensorRT 11 knows; explicit batch for a release that still asks for it."""
    flags = 0
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):
        if hasattr(module.NetworkDefinitionCreationFlag, name):
            flags |= 1 << int(getattr(module.NetworkDefinitionCreationFlag, name))
    return flags


def _check_border(module: Any, network: Any, spec: dict[str, Any]) -> None:
    """The parsed network must have the border that the bundle's manifest promises a host."""
    for side, count, get in (
        ("input", network.num_inputs, network.get_input),
        ("output", network.num_outputs, network.get_output),
    ):
        found = {tensor.name: tensor for tensor in map(get, range(count))}
        wanted = spec[f"{side}s"]
        if found.keys() != {tensor["name"] for tensor in wanted}:
            raise BuildRefusedError(
                f"its {side}s are {', '.join(found)}; the manifest says {', '.join(each['name'] for each in wanted)}",
                "export the bundle again",
            )
        for tensor in wanted:
            dtype = getattr(module.DataType, DTYPES[tensor["dtype"]])
            lengths = tuple(found[tensor["name"]].shape)
            fits = len(lengths) == len(tensor["shape"]) and all(
                length == -1 or length == want for length, want in zip(lengths, tensor["shape"], strict=True)
            )
            if found[tensor["name"]].dtype != dtype or not fits:
                raise BuildRefusedError(
                    f"its {side} {tensor['name']} is {found[tensor['name']].dtype.name} {lengths}; "
                    f"the manifest says {tensor['dtype']} {tuple(tensor['shape'])}",
                    "export the bundle again",
                )


def _quantised_nodes(module: Any, network: Any) -> list[str]:
    """ONNX nodes of products whose two factors come out of Q/DQ pairs, whatever moves lie between."""
    moves = (module.LayerType.SHUFFLE, module.LayerType.IDENTITY)
    products = (module.LayerType.MATRIX_MULTIPLY, module.LayerType.CONVOLUTION)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}

    def is_dequantised(tensor: Any) -> bool:
        maker = makers.get(tensor.name) if tensor is not None else None
        while maker is not None and maker.type in moves:
            maker = makers.get(maker.get_input(0).name)
        return maker is not None and maker.type == module.LayerType.DEQUANTIZE

    nodes = []
    for layer in layers:
        if layer.type in products and layer.num_inputs >= 2 and all(is_dequantised(layer.get_input(i)) for i in (0, 1)):
            named = re.findall(r"\[ONNX Layer: ([^\]]*)\]", getattr(layer, "metadata", ""))
            nodes += named or [layer.name]
    return nodes


def _configure(module: Any, builder: Any, config: Any, job: Job) -> None:
    settings = job["settings"]
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # the layer report in the log
    if hasattr(module.BuilderFlag, "TF32"):
        (config.set_flag if settings["tf32"] else config.clear_flag)(module.BuilderFlag.TF32)
    if settings["workspace_bytes"] is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, settings["workspace_bytes"])
    if settings["static_memory"] and hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    dynamic = [each for each in job["spec"]["inputs"] if any(isinstance(length, str) for length in each["shape"])]
    if dynamic:
        profile = builder.create_optimization_profile()
        for tensor in dynamic:
            profile.set_shape(tensor["name"], *profile_shapes(tensor["shape"], settings["profile"]))
        if config.add_optimization_profile(profile) < 0:
            raise BuildRefusedError("the builder refuses the lengths of its dynamic dimensions", "give other lengths")


def _timing_cache(config: Any, path: str | None, log: TextIO) -> Any:
    """Hand the builder the times it measured before; None where there is no such thing.

    A cache of another TensorRT or GPU is refused by TensorRT itself; then a new one is begun. So is one that cannot
    be read: no build should fail for want of a cache.
    """
    if path is None or not hasattr(config, "create_timing_cache"):
        return None
    found = b""
    with contextlib.suppress(OSError):
        found = Path(path).read_bytes()
    for content in (found, b"") if found else (b"",):
        try:
            cache = config.create_timing_cache(content)
        except (RuntimeError, ValueError, TypeError):  # damaged: the bindings raise, older ones give None
            cache = None
        if cache is not None and config.set_timing_cache(cache, False):
            log.write(f"[INFO] timing cache {path}: {f'{len(content)} bytes' if content else 'begun'}\n")
            return cache
        log.write(f"[WARNING] timing cache {path}: not of this TensorRT and GPU, or damaged\n")
    return None


def _keep_timing_cache(cache: Any, path: str, log: TextIO) -> None:
    """Write the cache whole or not at all; what a killed build leaves has the name that the next one clears away."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(cache.serialize())
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        log.write(f"[WARNING] timing cache {path}: cannot be written: {error.strerror}\n")


def profile_shapes(shape: list[Any], profile: dict[str, dict[str, int]]) -> list[tuple[int, ...]]:
    """Smallest, usual and largest shape of a tensor whose lengths are numbers or names of dynamic dimensions."""
    return [
        tuple(profile[length][which] if isinstance(length, str) else int(length) for length in shape)
        for which in ("min", "opt", "max")
    ]


def _choose_capabilities(module: Any, config: Any, wanted: list[str]) -> list[str]:
    """Tell the builder its GPUs where it can be told; else make sure that the one at hand is the one asked for."""
    if hasattr(config, "num_compute_capabilities") and hasattr(module, "ComputeCapability"):
        known = module.ComputeCapability.__members__
        names = [f"SM{capability.replace('.', '')}" for capability in wanted]
        config.num_compute_capabilities = len(names)
        for i, (name, capability) in enumerate(zip(names, wanted, strict=True)):
            if name not in known or not config.set_compute_capability(known[name], i):
                raise BuildRefusedError(
                    f"{module.__name__} {module.__version__} does not build for compute capability {capability}",
                    "give another --compute-capability, or build on the device",
                )
        return wanted
    here = gpu_capability()
    if here is not None and wanted != [here]:
        raise BuildRefusedError(
            f"{module.__name__} builds for the GPU at hand, which has compute capability {here}, "
            f"not {', '.join(wanted)}",
            "build on that device",
        )
    return wanted  # without a driver the builder itself refuses, and says why


def gpu_capability() -> str | None:
    """Compute capability of the first GPU, asked of the driver itself; None without a driver or a GPU."""
    driver = None
    for name in ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so"):
        with contextlib.suppress(OSError):
            driver = ctypes.CDLL(name)
            break
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    # 75 and 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    failed = driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return None if failed else f"{major.value}.{minor.value}"


def _logger(module: Any, log: TextIO) -> Any:
    names = {getattr(module.ILogger, name): name for name in LEVELS}

    class Log(module.ILogger):  # type: ignore[misc]  # the base is known at run time only
        """Everything to the file; errors at once, so that a crash leaves them behind."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.write(f"[{names.get(severity, severity)}] {message}\n")
            if names.get(severity) in ("INTERNAL_ERROR", "ERROR"):
                log.flush()

    return Log()


def _monitor(module: Any, listener: Listener) -> Any:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # the base is known at run time only
        """Hands the builder's phases on."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            listener.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return listener.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            listener.finish(phase_name)

    return Monitor()


def _peak_bytes() -> int | None:
    """Resident memory of this process at its peak; None where the system does not say.

    Not getrusage: on Linux its ru_maxrss starts at what the parent held when it forked.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _seal(plan: Path, job: Job, outcome: dict[str, Any]) -> None:
    """Write the plan's sidecar. Its layer list stays empty; `ebseg inspect` reads the log beside the plan instead."""
    digest = hashlib.sha256()
    with plan.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    sidecar = {
        **job["sidecar"],
        "plan": {"bytes": plan.stat().st_size, "sha256": digest.hexdigest()},
        "tensorrt_version": outcome["tensorrt_version"],
        "platform": f"{platform.system()}-{platform.machine()}".lower(),
        "settings": {**job["settings"], "compute_capabilities": outcome["compute_capabilities"]},
        "memory": {
            "weights_bytes": None,
            "activation_bytes": None,
            "scratch_bytes": None,
            "builder_peak_bytes": outcome["peak_bytes"],
        },
        "layers": [],
        "quantised_nodes": outcome["quantised_nodes"],
        "build_seconds": outcome["seconds"],
        "provenance": {
            **job["sidecar"]["provenance"],
            "built": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
    }
    partial = plan.with_name(f".{plan.name}.json.partial")
    partial.write_text(json.dumps(sidecar, indent=1), encoding="utf-8")
    os.replace(partial, f"{plan}.json")


def main() -> None:
    """Build or seal every job of the jobs.json beside this file."""
    parser = argparse.ArgumentParser(description="Build TensorRT engines on this device.")
    parser.add_argument("--seal", action="store_true", help="write sidecars for plans that are there already")
    parser.add_argument("--compute-capability", help="of this GPU, where the driver cannot be asked")
    options = parser.parse_args()
    folder = Path(__file__).resolve().parent
    here = options.compute_capability or gpu_capability()
    for job in json.loads((folder / "jobs.json").read_text(encoding="utf-8")):
        plan = folder / job["plan_file"]
        plan.parent.mkdir(parents=True, exist_ok=True)
        partial = plan.with_name(f".{plan.name}.partial")
        module = importlib.import_module(job["module"])
        wanted = job["settings"]["compute_capabilities"] or ([here] if here else [])
        if here and wanted != [here]:
            sys.exit(f"{plan.name}: meant for compute capability {', '.join(wanted)}, this GPU has {here}")
        if options.seal:
            if not plan.is_file():
                sys.exit(f"{plan}: not built yet; run build.sh first")
            outcome = {
                "tensorrt_version": str(module.__version__),
                "seconds": 0.0,
                "peak_bytes": None,
                "quantised_nodes": [],
            }
            _seal(plan, job, {**outcome, "compute_capabilities": wanted})
            continue
        print(f"{plan.name} …", flush=True)
        inner = {
            **job,
            "graph_file": str(folder / job["graph_file"]),
            "plan_file": str(partial),
            "settings": {**job["settings"], "compute_capabilities": wanted},
            "timing_cache": str(folder / job["timing_cache"]) if job["timing_cache"] else None,
        }
        log_file = plan.with_suffix(".build.log")
        try:
            with log_file.open("w", encoding="utf-8", errors="replace") as log:
                outcome = build_plan(module, inner, log)
        except BuildRefusedError as error:
            sys.exit(f"{plan.name}: {error}; {error.cure} ({log_file})")
        finally:
            if sys.exc_info()[0] is not None:
                partial.unlink(missing_ok=True)
        os.replace(partial, plan)
        _seal(plan, job, outcome)
        print(f"{plan.name}: {plan.stat().st_size / 1e6:.1f} MB in {outcome['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
