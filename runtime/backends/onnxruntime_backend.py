"""ONNX Runtime: on the CPU by default, on an NVIDIA GPU through one of its providers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ...contract import DType, GraphSpec, TensorSpec
from ...errors import BackendError
from .base import Array, Backend, OpenGraph

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

_DTYPES: dict[str, DType] = {
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
}


class OnnxRuntimeBackend(Backend):
    """Runs .onnx files.

    Args:
        provider: a key of PROVIDERS.
        threads: threads inside one operator; None leaves it to ONNX Runtime, which takes one per physical core.
        spinning: let idle threads spin during a run; for a machine that does nothing else.
        reason: why this backend was picked.

    Raises:
        BackendError: ONNX Runtime is not installed, or was built without the provider; names the line to install it.
    """

    def __init__(
        self,
        provider: str = "cpu",
        *,
        threads: int | None = None,
        spinning: bool = False,
        reason: str = "asked for by name",
    ) -> None:
        super().__init__("onnxruntime" if provider == "cpu" else f"onnxruntime:{provider}", reason=reason)
        self._ort = load_onnxruntime(provider)
        if provider not in PROVIDERS:
            raise BackendError(
                f"backend onnxruntime:{provider}: no such provider", cure=f"choose from {', '.join(PROVIDERS)}"
            )
        available = self._ort.get_available_providers()
        if PROVIDERS[provider] not in available:
            raise BackendError(
                f"backend {self.name}: this ONNX Runtime {self._ort.__version__} has {', '.join(available)} only",
                cure=INSTALL[provider],
            )
        if threads is not None and threads < 1:
            raise BackendError(f"backend {self.name}: {threads} threads", cure="give 1 or more")
        self.provider = provider
        self.threads = threads
        self.spinning = spinning

    def _open_impl(self, file: Path, name: str, spec: GraphSpec | None) -> tuple[Any, GraphSpec]:
        if not file.is_file():
            raise BackendError(f"graph {name}: no file {file}", cure="give the path of an .onnx file")
        providers = list(dict.fromkeys((PROVIDERS[self.provider], PROVIDERS["cpu"])))
        try:
            # By path, not by bytes: ONNX Runtime then maps external weights instead of copying them.
            session = self._ort.InferenceSession(str(file), self._options(), providers=providers)
        except Exception as error:
            raise BackendError(
                f"graph {name}: {self.name} refused {file}: {one_line(error)}",
                cure="check the file with `ebseg verify`, or export it again",
            ) from error
        used = session.get_providers()[0]
        if used != PROVIDERS[self.provider]:
            # ONNX Runtime only warns when a provider's libraries fail to load, and goes on with the CPU.
            raise BackendError(
                f"graph {name}: {PROVIDERS[self.provider]} did not load and ONNX Runtime took {used}",
                cure="see `ebseg doctor`, or use --backend onnxruntime",
            )
        return session, GraphSpec(
            inputs=tuple(_tensor(name, each) for each in session.get_inputs()),
            outputs=tuple(_tensor(name, each) for each in session.get_outputs()),
        )

    def _options(self) -> Any:
        options = self._ort.SessionOptions()
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors only: its warnings about provider choice mean nothing to users
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        # Patterns keep a second block of activations beside the arena: EBSeg-B at 640x640 peaked at 2.8 GB with them
        # and at 2.0 GB without, in the same time.
        options.enable_mem_pattern = False
        # A worker that spins takes its core from the other image encoder, or from numpy: on two busy cores both
        # encoders took 3.3 s with spinning and 2.9 s without.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.spinning else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def _run_impl(self, graph: OpenGraph, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = [tensor.name for tensor in graph.spec.outputs]
        try:
            return dict(zip(names, graph.session.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise BackendError(
                f"graph {graph.name}: {self.name} failed: {one_line(error)}",
                cure="check memory with `ebseg doctor` and the bundle with `ebseg verify`",
            ) from error


def load_onnxruntime(provider: str = "cpu") -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        BackendError: it is not installed; names the line to install it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"backend onnxruntime: {one_line(error)}", cure=INSTALL.get(provider, INSTALL["cpu"])
        ) from error
    return onnxruntime  # type: ignore[no-any-return]


def one_line(error: BaseException, limit: int = 300) -> str:
    """An engine's message without line breaks, cut at `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}…"


def _tensor(graph: str, tensor: Any) -> TensorSpec:
    if tensor.type not in _DTYPES:
        raise BackendError(
            f"graph {graph}: tensor {tensor.name} is {tensor.type}", cure=f"use one of {', '.join(_DTYPES)}"
        )
    # ONNX Runtime gives None for a length that has neither value nor name.
    shape = tuple(f"{tensor.name}_{axis}" if length is None else length for axis, length in enumerate(tensor.shape))
    return TensorSpec(name=tensor.name, dtype=_DTYPES[tensor.type], shape=shape)
