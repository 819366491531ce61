"""Engines on disk: a plan and its sidecar, checked before a byte of the plan reaches TensorRT.

A serialised engine holds machine code. TensorRT does not check where it comes from, and answers to another version's
or another GPU's plan with an internal error or worse. So the sidecar is read first: the plan's size and sha256, the
TensorRT version, the operating system and the GPU's compute capability must fit, and a refusal says how to rebuild.
"""

from __future__ import annotations

import hashlib
import platform
import shlex
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..contract import ENGINE_SCHEMA_VERSION, MERGED, EngineName, EngineSidecar, EngineTarget, GraphRecord, Size
from ..errors import BackendError, BundleError
from .hashing import file_sha256

PLAN_SUFFIX = ".plan"
LARGEST_SIDECAR_BYTES = 64 << 20
"""A report of a thousand layers has half a megabyte; a file beyond this is no sidecar."""


@dataclass(frozen=True, kw_only=True)
class EngineHost:
    """Where an engine is to run."""

    target: EngineTarget
    tensorrt_version: str
    """`tensorrt.__version__` or `tensorrt_rtx.__version__`."""
    compute_capability: str
    """Of the GPU: "8.6"."""
    platform: str = ""
    """As in the sidecar; this machine's by default."""


def host_platform() -> str:
    """Operating system and processor of this machine: "linux-x86_64", "linux-aarch64", "windows-amd64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


def plan_name(graph: EngineName, size: Size | None) -> str:
    """The file name of an engine: "sam_image_encoder.640x640.plan", "text_encoder.plan", "merged.640x640.plan"."""
    return f"{graph}.{size}{PLAN_SUFFIX}" if size else f"{graph}{PLAN_SUFFIX}"


def sidecar_path(plan: Path) -> Path:
    """The sidecar that belongs to a plan."""
    return plan.with_name(f"{plan.name}.json")


def check_engine(
    plan: Path,
    *,
    host: EngineHost | None = None,
    graph: GraphRecord | None = None,
    source: dict[str, str] | None = None,
) -> EngineSidecar:
    """Check a plan against its sidecar, its host and the graph it should stand for. Nothing of it is executed.

    Args:
        plan: the .plan file; the sidecar lies beside it.
        host: where it is to run; not checked if None.
        graph: which graph of a bundle it should be; not checked if None.
        source: the graph's files and their sha256, from the bundle's manifest; not checked if None.

    Raises:
        BundleError: plan or sidecar is missing, damaged or of another schema version, or belongs to another graph.
        BackendError: built for another TensorRT, operating system or GPU; the message has the command that rebuilds.
    """
    sidecar = read_sidecar(plan)
    _check_plan(plan, sidecar, _size(plan, sidecar), file_sha256(plan))
    _check_use(plan, sidecar, host, graph, source)
    return sidecar


def read_engine(
    plan: Path,
    *,
    host: EngineHost | None = None,
    graph: GraphRecord | None = None,
    source: dict[str, str] | None = None,
) -> tuple[EngineSidecar, bytes]:
    """`check_engine`, and the plan's bytes: the very ones that were checked, read once."""
    sidecar = read_sidecar(plan)
    _check_use(plan, sidecar, host, graph, source)
    _size(plan, sidecar)
    content = plan.read_bytes()
    _check_plan(plan, sidecar, len(content), hashlib.sha256(content).hexdigest())
    return sidecar, content


def read_sidecar(plan: Path) -> EngineSidecar:
    """What the sidecar says; the plan itself is not looked at.

    Raises:
        BundleError: it is missing, no JSON, of another schema version, or a field is wrong.
    """
    path = sidecar_path(plan)
    again = "build it again with `ebseg build`"
    try:
        if path.stat().st_size > LARGEST_SIDECAR_BYTES:
            raise BundleError(f"engine {plan}: sidecar {path.name} has {path.stat().st_size} bytes", cure=again)
        text = path.read_bytes()
    except FileNotFoundError:
        missing = "no such file" if not plan.exists() else f"its sidecar {path.name} is missing"
        raise BundleError(f"engine {plan}: {missing}", cure=again) from None
    except OSError as error:
        raise BundleError(f"engine {plan}: {path.name}: {error.strerror}", cure="check the file's rights") from error
    try:
        version = msgspec.json.decode(text, type=_VersionOnly).schema_version
        if version != ENGINE_SCHEMA_VERSION:
            raise BundleError(
                f"engine {plan}: sidecar version {version}, this release reads version {ENGINE_SCHEMA_VERSION}",
                cure="install a newer ebseg-deploy" if version > ENGINE_SCHEMA_VERSION else again,
            )
        return msgspec.json.decode(text, type=EngineSidecar)
    except msgspec.ValidationError as error:
        raise BundleError(f"engine {plan}: {path.name}: {error}", cure=again) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"engine {plan}: {path.name} is not JSON: {error}", cure=again) from error


def rebuild_command(sidecar: EngineSidecar, *, target: EngineTarget | None = None, compute_capability: str = "") -> str:
    """The `ebseg build` line that makes this engine again, for another target or GPU if given."""
    settings = sidecar.settings
    capabilities = compute_capability or ",".join(settings.compute_capabilities)
    words = ["ebseg", "build", "BUNDLE", "--target", target or sidecar.target, "--precision", sidecar.precision]
    words += ["--compute-capability", capabilities]
    words += ["--merged"] if sidecar.graph == MERGED else ["--graph", sidecar.graph]
    for dimension in ("batch", "classes", "prompts", "tokens"):
        if dimension in settings.profile:
            words += [f"--{dimension}", str(settings.profile[dimension])]
    if settings.workspace_bytes is not None:
        words += ["--workspace", str(settings.workspace_bytes)]
    if settings.tf32:
        words.append("--tf32")
    for pattern in settings.keep_fp32:
        words += ["--keep-fp32", pattern]
    return shlex.join(words)


class _VersionOnly(msgspec.Struct):
    """The one field that every version of the sidecar has."""

    schema_version: int


def _size(plan: Path, sidecar: EngineSidecar) -> int:
    """The plan's size; a plan of the wrong size is not read at all."""
    try:
        found = plan.stat().st_size
    except OSError as error:
        raise BundleError(f"engine {plan}: {error.strerror}", cure=f"rebuild it: {rebuild_command(sidecar)}") from error
    if found != sidecar.plan.bytes:
        raise BundleError(
            f"engine {plan}: {found} bytes, its sidecar says {sidecar.plan.bytes}",
            cure=f"do not load it; rebuild it: {rebuild_command(sidecar)}",
        )
    return found


def _check_plan(plan: Path, sidecar: EngineSidecar, size: int, sha256: str) -> None:
    if (size, sha256) != (sidecar.plan.bytes, sidecar.plan.sha256):
        raise BundleError(
            f"engine {plan}: its sha256 is {sha256[:12]}…, its sidecar says {sidecar.plan.sha256[:12]}…",
            cure=f"do not load it; rebuild it: {rebuild_command(sidecar)}",
        )


def _check_use(
    plan: Path,
    sidecar: EngineSidecar,
    host: EngineHost | None,
    graph: GraphRecord | None,
    source: dict[str, str] | None,
) -> None:
    if graph is not None:
        found = (sidecar.graph, sidecar.precision, sidecar.size, sidecar.spec)
        if found != (graph.name, graph.precision, graph.size, graph.spec):
            raise BundleError(
                f"engine {plan}: it is {_label(sidecar.graph, sidecar.size, sidecar.precision)}, "
                f"not {_label(graph.name, graph.size, graph.precision)} of this bundle",
                cure=f"rebuild it: {rebuild_command(sidecar)}",
            )
    if source is not None and source != sidecar.source:
        changed = sorted(set(sidecar.source.items()) ^ set(source.items()))
        raise BundleError(
            f"engine {plan}: {changed[0][0]} is not what it was built from",
            cure=f"rebuild it: {rebuild_command(sidecar)}",
        )
    if host is not None:
        _check_host(plan, sidecar, host)


def _check_host(plan: Path, sidecar: EngineSidecar, host: EngineHost) -> None:
    here = host.platform or host_platform()
    capabilities = sidecar.settings.compute_capabilities
    faults = [
        (sidecar.target != host.target, f"built for {sidecar.target}, this is {host.target}"),
        (sidecar.platform != here, f"built on {sidecar.platform}, this is {here}"),
        # TensorRT wants major, minor, patch and build alike.
        (
            sidecar.tensorrt_version != host.tensorrt_version,
            f"built with TensorRT {sidecar.tensorrt_version}, this is {host.tensorrt_version}",
        ),
        (
            host.compute_capability not in capabilities,
            f"built for compute capability {', '.join(capabilities)}, this GPU has {host.compute_capability}",
        ),
    ]
    wrong = [text for fault, text in faults if fault]
    if wrong:
        command = rebuild_command(sidecar, target=host.target, compute_capability=host.compute_capability)
        raise BackendError(f"engine {plan}: {'; '.join(wrong)}", cure=f"rebuild it here: {command}")


def _label(graph: str, size: Size | None, precision: str) -> str:
    return " ".join(str(part) for part in (graph, size, precision) if part is not None)
