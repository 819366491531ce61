"""ONNX Runtime's execution providers: their names here, how to get them, and the options they are given."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

from ...errors import BackendError
from ..cache import cache_folder
from ..gpu_host import GpuHost

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
"""The part of a backend's name after the colon -> ONNX Runtime's name."""

INSTALL = {
    "cpu": "pip install 'ebseg-deploy[cpu]'",
    "cuda": "pip uninstall -y onnxruntime && pip install 'ebseg-deploy[gpu]'",
    "tensorrt": "pip uninstall -y onnxruntime && pip install 'ebseg-deploy[gpu]' tensorrt-cu12",
    "nv-tensorrt-rtx": "install an ONNX Runtime built with --use_nv_tensorrt_rtx; see docs/how-to/choose-a-backend.md",
}

FALL_BACKS = {
    "cpu": ("cpu",),
    "cuda": ("cuda", "cpu"),
    "tensorrt": ("tensorrt", "cuda", "cpu"),
    "nv-tensorrt-rtx": ("nv-tensorrt-rtx", "cpu"),
}
"""Provider -> those that ONNX Runtime may give nodes to, in order."""

Options = Mapping[str, str]


def parse_provider(text: str) -> tuple[str, dict[str, str]]:
    """The part of a backend's name after the colon: "tensorrt,device_id=1" -> "tensorrt" and {"device_id": "1"}.

    Raises:
        BackendError: an option without a value, or one twice.
    """
    provider, *words = text.split(",")
    options: dict[str, str] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not (name and equals and value) or name in options:
            raise BackendError(
                f"backend onnxruntime:{text}: option {word!r} is no NAME=VALUE, or comes twice",
                cure="write as onnxruntime:cuda,device_id=1",
            )
        options[name] = value
    return provider.strip(), options


def provider_options(provider: str, given: Options, *, engine_cache: Path | None) -> list[dict[str, str]]:
    """Options for each of a provider's FALL_BACKS; what the user gave holds against what is set here.

    Args:
        provider: a key of PROVIDERS.
        given: of the provider itself; `device_id` holds for those it falls back to as well.
        engine_cache: folder for engines that belong to one graph on this machine; None keeps none.
    """
    defaults: dict[str, dict[str, str]] = {
        "cpu": {},
        # FP32 means FP32: with TF32, ONNX Runtime's default, products keep ten bits of mantissa.
        "cuda": {"use_tf32": "0"},
        # Neither trt_fp16_enable nor trt_int8_enable: with one of them TensorRT may put any layer into that type. The
        # precision stands in the graph, whose types it keeps without them.
        "tensorrt": {"trt_engine_cache_enable": "0"},
        "nv-tensorrt-rtx": {},
    }
    if engine_cache is not None:
        folder = str(engine_cache)
        defaults["tensorrt"] = {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
        }
        defaults["nv-tensorrt-rtx"] = {"nv_runtime_cache_path": folder}
    device = {name: value for name, value in given.items() if name == "device_id"}
    chosen = []
    for each in FALL_BACKS[provider]:
        own = given if each == provider else device if each != "cpu" else {}
        chosen.append({**defaults[each], **own})
    return chosen


def settings_text(given: Options) -> str:
    """The options that the user gave, in an order of their own: "device_id=1 trt_fp16_enable=1"."""
    return " ".join(f"{name}={given[name]}" for name in sorted(given))


def computes_in_tf32(provider: str, given: Options) -> bool:
    """Whether FP32 products may be computed in TF32: CUDA's option says so, TensorRT's providers have none and do."""
    return provider not in ("cpu", "cuda") or (provider == "cuda" and given.get("use_tf32", "0") != "0")


def engine_cache_folder(graph_sha256: str, host: GpuHost, given: Options) -> Path:
    """Where a provider's own engines of one graph lie, on one GPU.

    ONNX Runtime names an engine after the graph's nodes and not after its weights: in a folder for all, a bundle with
    other weights would get this one's engine. It also stops at an engine of another release in place of building.
    """
    key = [graph_sha256, str(host), host.gpu, settings_text(given)]
    return cache_folder("onnxruntime-engines") / hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]


def kept_engines_hash(options: Options) -> str:
    """What tells the engines in a provider's cache folder from those that it would build in their place.

    TensorRT chooses kernels by time: two builds of one graph may compute otherwise. Names, sizes and times of the files
    do without reading a gigabyte of engines.

    Args:
        options: as `provider_options` gives them for the provider.

    Returns:
        A sha256; empty when no engine is kept.
    """
    if options.get("trt_engine_cache_enable", "0").lower() not in ("1", "true") or not (
        folder := options.get("trt_engine_cache_path")
    ):
        return ""
    lines = []
    for path in sorted(Path(folder).glob("*")):
        with contextlib.suppress(OSError):  # gone meanwhile
            found = path.stat()
            lines.append(f"{path.name} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""
