"""Pick a backend by name, or the best one this machine has, and say why."""

from __future__ import annotations

from pathlib import Path

from ...contract import ENGINE_TARGETS
from ...errors import BackendError
from .base import Backend
from .fake import FakeBackend
from .onnxruntime_backend import OnnxRuntimeBackend, load_onnxruntime
from .onnxruntime_providers import PROVIDERS, parse_provider
from .tensorrt_backend import TensorRtBackend

BACKEND_NAMES = (
    "auto",
    "onnxruntime",
    *(f"onnxruntime:{provider}" for provider in PROVIDERS if provider != "cpu"),
    *ENGINE_TARGETS,
    "fake",
)
"""What `open_backend` and every `--backend` option take."""

NVIDIA_DEVICE_NODES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/dxg")
"""One of them is there when a GPU is: desktop Linux, Jetson, WSL."""


def open_backend(name: str = "auto", *, threads: int | None = None) -> Backend:
    """Make a backend.

    Args:
        name: one of BACKEND_NAMES; "tensorrt:FOLDER" or "tensorrt-rtx:FOLDER" for engines that do not lie in the
            bundle; "onnxruntime:cuda,device_id=1" gives an ONNX Runtime provider options. "auto" takes ONNX Runtime's
            CUDA provider when it is installed and the machine has an NVIDIA GPU, else ONNX Runtime on the CPU; the
            backend's `reason` says which and why. Engines are never picked by themselves: they have to be built first.
        threads: threads inside one operator on the CPU; None leaves it to the engine.

    Raises:
        BackendError: an unknown name, or an engine that is not installed (names the line to install it).
    """
    if name == "auto":
        provider, reason = _choose_provider()
        return OnnxRuntimeBackend(provider, threads=threads, reason=reason)
    if name == "fake":
        return FakeBackend()
    engine, _, provider = name.partition(":")
    for target in ENGINE_TARGETS:
        if engine == target:
            return TensorRtBackend(target, engines=Path(provider) if provider else None)
    provider, options = parse_provider(provider)
    if engine != "onnxruntime" or (provider and provider not in PROVIDERS):
        raise BackendError(f"backend {name!r}: no such backend", cure=f"choose from {', '.join(BACKEND_NAMES)}")
    return OnnxRuntimeBackend(provider or "cpu", threads=threads, options=options)


def _choose_provider() -> tuple[str, str]:
    has_cuda = PROVIDERS["cuda"] in load_onnxruntime().get_available_providers()
    has_gpu = any(Path(node).exists() for node in NVIDIA_DEVICE_NODES)
    if has_cuda and has_gpu:
        return "cuda", "ONNX Runtime has its CUDA provider and the machine an NVIDIA GPU"
    if has_gpu:
        return "cpu", "the machine has an NVIDIA GPU, but this ONNX Runtime has no CUDA provider"
    return "cpu", "no NVIDIA GPU was found"
