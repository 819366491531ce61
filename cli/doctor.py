"""`ebseg doctor`: what this machine can run, and what to install for the rest."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

State = Literal["ok", "absent", "warning", "fault"]
MARKS: dict[State, str] = {"ok": "ok", "absent": "-", "warning": "!", "fault": "FAULT"}

RUNTIME_MODULES = ("msgspec", "numpy", "PIL", "safetensors", "tokenizers", "ftfy", "rapidfuzz", "psutil", "rich")
EXPORT_MODULES = ("torch", "onnx", "onnxscript", "onnx_ir", "open_clip", "segment_anything")
PROVIDERS = {
    "CPUExecutionProvider": "pip install 'ebseg-deploy[cpu]'",
    "CUDAExecutionProvider": "with an NVIDIA GPU: pip uninstall -y onnxruntime && pip install 'ebseg-deploy[gpu]'",
    "TensorrtExecutionProvider": "with an NVIDIA GPU: the line above, and pip install tensorrt-cu12",
    "NvTensorRTRTXExecutionProvider": "with an RTX GPU: an ONNX Runtime built with --use_nv_tensorrt_rtx",
}
ENGINES = {
    "tensorrt": "with an NVIDIA GPU: pip install tensorrt-cu12; on Jetson it comes with JetPack",
    "tensorrt_rtx": "with a GeForce or RTX GPU: pip install tensorrt-rtx-cu12",
}
"""Optional engines: module -> how to get it."""

SENTINEL = "whether it strikes is checked at the first run of engines; see docs/how-to/gpu-runtime.md"

LOW_MEMORY_BYTES = 3 << 30
"""EBSeg-B at 640x640 in FP32 is to stay under 2.5 GiB; the rest is the system's."""
LOW_DISK_BYTES = 2 << 30
"""One EBSeg-B bundle in FP32 takes about 1 GB, and its zip is unpacked to the cache."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's report."""

    what: str
    state: State
    """ok; absent: optional and not there; warning: works, but look at it; fault: the runtime cannot work."""
    found: str
    cure: str = ""


def examine() -> list[Check]:
    """Look at everything; nothing here raises for what is missing."""
    checks = [_python(), _modules("runtime packages", RUNTIME_MODULES, "pip install ebseg-deploy", needed=True)]
    if checks[-1].state == "ok":
        checks += _machine()
    checks += _onnxruntime()
    checks += [_engine(module, cure) for module, cure in ENGINES.items()]
    checks.append(_modules("export packages", EXPORT_MODULES, "pip install 'ebseg-deploy[export,cpu]'", needed=False))
    checks.append(_cache())
    return checks


def _python() -> Check:
    found = f"{sys.version.split()[0]}, {sys.executable}"
    state: State = "ok" if sys.version_info >= (3, 10) else "fault"
    return Check(what="Python", state=state, found=found, cure="" if state == "ok" else "install Python 3.10 or newer")


def _modules(what: str, modules: tuple[str, ...], cure: str, *, needed: bool) -> Check:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        return Check(
            what=what, state="fault" if needed else "absent", found=f"missing: {', '.join(missing)}", cure=cure
        )
    return Check(what=what, state="ok", found=f"all there: {', '.join(modules)}")


def _machine() -> list[Check]:
    from ..benchmarks.machine import describe_machine
    from .tables import bytes_text

    machine = describe_machine()
    low = machine.available_bytes < LOW_MEMORY_BYTES
    checks = [
        Check(
            what="processor", state="ok", found=f"{machine.cpu}; {machine.usable_cores} of {machine.cores} cores usable"
        ),
        Check(
            what="memory",
            state="warning" if low else "ok",
            found=f"{bytes_text(machine.available_bytes)} of {bytes_text(machine.memory_bytes)} free",
            cure="close other programs, or use a smaller canvas" if low else "",
        ),
    ]
    for gpu in machine.gpus:
        memory = "shared memory" if gpu.memory_mib is None else f"{gpu.memory_mib} MiB"
        checks.append(
            Check(
                what="GPU",
                state="ok",
                found=f"{gpu.name}, {memory}, compute capability {gpu.compute_capability}, driver {gpu.driver}",
            )
        )
    if not machine.gpus:
        checks.append(
            Check(what="GPU", state="absent", found="nvidia-smi lists none", cure="not needed: the CPU works")
        )
    driver = machine.cuda_driver
    checks.append(
        Check(what="CUDA driver", state="ok", found=f"supports CUDA {driver}")
        if driver
        else Check(
            what="CUDA driver",
            state="absent",
            found="no libcuda",
            cure="install NVIDIA's driver if this machine has its GPU",
        )
    )
    return checks


def _onnxruntime() -> list[Check]:
    try:
        import onnxruntime
    except ImportError as error:
        found = " ".join(str(error).split()) or type(error).__name__
        return [Check(what="onnxruntime", state="fault", found=found, cure=PROVIDERS["CPUExecutionProvider"])]
    checks = [Check(what="onnxruntime", state="ok", found=onnxruntime.__version__)]
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if len(both) == 2:
        checks.append(
            Check(
                what="onnxruntime packages",
                state="warning",
                found="onnxruntime and onnxruntime-gpu overwrite each other's files",
                cure="pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'ebseg-deploy[gpu]'",
            )
        )
    available = onnxruntime.get_available_providers()
    for provider in dict.fromkeys((*PROVIDERS, *available)):
        if provider in available:
            checks.append(Check(what=f"  {provider}", state="ok", found="built in"))
        else:
            checks.append(
                Check(what=f"  {provider}", state="absent", found="not in this build", cure=PROVIDERS[provider])
            )
    return checks


def _engine(module: str, cure: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check(what=module, state="absent", found="not installed", cure=cure)
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # a wheel whose native libraries do not load raises what it likes
        found = f"installed, but: {' '.join(str(error).split())[:200]}"
        return Check(what=module, state="warning", found=found, cure=f"install it again: {cure}")
    version = str(getattr(loaded, "__version__", "version unknown"))
    faults = _known_faults(module.replace("_", "-"), version)
    if faults:
        return Check(what=module, state="warning", found=f"{version}; known: {'; '.join(faults)}", cure=SENTINEL)
    return Check(what=module, state="ok", found=version)


def _known_faults(engine: str, version: str) -> list[str]:
    """What is known of a TensorRT release on this GPU."""
    from ..runtime.gpu_host import find_gpu
    from ..runtime.known_bad import suspects

    gpu = find_gpu(engine=engine, engine_version=version)
    return [str(entry) for entry in suspects(engine, version, None if gpu is None else gpu.compute_capability)]


def _cache() -> Check:
    from ..runtime.cache import CACHE_VARIABLE, KINDS, cache_folder, used_bytes
    from .tables import bytes_text

    folder = cache_folder("bundles").parent
    kept = sum(used_bytes(cache_folder(kind)) for kind in KINDS)
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    found = f"{folder}, {bytes_text(kept)} in it that can be made again, {bytes_text(free)} free"
    if not there.is_dir() or not _writable(there):
        cure = f"set {CACHE_VARIABLE} to a folder you may write"
        return Check(what="cache folder", state="warning", found=f"{folder}: cannot write", cure=cure)
    if free < LOW_DISK_BYTES:
        return Check(
            what="cache folder",
            state="warning",
            found=found,
            cure=f"ebseg doctor --clean-cache, or set {CACHE_VARIABLE}",
        )
    return Check(what="cache folder", state="ok", found=found)


def _clean_cache(as_json: bool) -> None:
    from ..runtime.cache import KINDS, cache_folder, clear_cache
    from .tables import bytes_text, print_json

    freed = clear_cache()
    folder = cache_folder("bundles").parent
    if as_json:
        print_json({"folder": str(folder), "freed_bytes": freed})
        return
    for kind, count in freed.items():
        if count:
            click.echo(f"{kind}: {bytes_text(count)} ({KINDS[kind]})")
    click.echo(f"{folder}: {bytes_text(sum(freed.values()))} freed")


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _version(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@click.command()
@click.option("--clean-cache", is_flag=True, help="Throw away what the cache folder can make again, instead.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable report on stdout.")
@click.pass_context
def command(ctx: click.Context, clean_cache: bool, as_json: bool) -> None:
    """Say what this machine can run, and what to install for the rest.

    Exit code 0 when the runtime can work (on the CPU at least), 1 when it cannot.
    """
    if clean_cache:
        _clean_cache(as_json)
        return
    checks = examine()
    able = all(check.state != "fault" for check in checks)
    if as_json:
        from .tables import print_json

        print_json({"able": able, "checks": [asdict(check) for check in checks]})
    elif importlib.util.find_spec("rich") is None:
        for check in checks:
            click.echo(f"{MARKS[check.state]:6}{check.what}: {check.found}{'; ' * bool(check.cure)}{check.cure}")
    else:
        from .tables import print_table

        rows = [(MARKS[check.state], check.what, check.found, check.cure) for check in checks]
        print_table("What this machine can run", ("", "what", "found", "to do"), rows)
    if not as_json:
        click.echo("The runtime can work here." if able else "The runtime cannot work here: see FAULT above.")
    ctx.exit(0 if able else 1)
