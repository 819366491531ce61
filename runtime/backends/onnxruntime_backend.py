"""ONNX Runtime: on the CPU by default, on an NVIDIA GPU through one of its providers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...contract import DType, GraphRecord, GraphSpec, TensorSpec
from ...errors import BackendError
from ..cache import LARGEST_KIND_BYTES, mark_used, trim_folder
from ..gpu_host import GpuHost, find_gpu
from .base import Array, Backend, LoadedGraph, OpenGraph, ResidentTensor, Tensor
from .onnxruntime_providers import (
    FALL_BACKS,
    INSTALL,
    PROVIDERS,
    Options,
    computes_in_tf32,
    engine_cache_folder,
    kept_engines_hash,
    provider_options,
    settings_text,
)

if TYPE_CHECKING:
    from ..bundle import Bundle

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
        options: of the provider, as ONNX Runtime documents them; they hold against those this class sets.
        io_binding: keep tensors on the provider's device from graph to graph; by default on a GPU only, where they
            would be copied otherwise.
        optimise: let ONNX Runtime rewrite graphs to run faster; without, they compute as they are written.
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
        options: Options | None = None,
        io_binding: bool | None = None,
        optimise: bool = True,
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
        self.options = dict(options or {})
        self.settings = settings_text(self.options)
        device = self.options.get("device_id", "0")
        if not device.isdecimal():
            raise BackendError(f"backend {self.name}: device_id {device!r}", cure="give a GPU's number: 0, 1, …")
        self.provider = provider
        self.threads = threads
        self.spinning = spinning
        self.optimise = optimise
        self.io_binding = provider != "cpu" if io_binding is None else io_binding
        self._device = ("cpu" if provider == "cpu" else "cuda", int(device))
        """ONNX Runtime's name and number of where tensors lie."""
        self._hashes: dict[Path, str] = {}
        """Of a bundle's graph files and their weights."""
        self._used_options: dict[Path, Options] = {}
        """Of the provider, for the graphs that were opened."""

    def _open_impl(self, file: Path, name: str, spec: GraphSpec | None) -> tuple[Any, GraphSpec]:
        if not file.is_file():
            raise BackendError(f"graph {name}: no file {file}", cure="give the path of an .onnx file")
        try:
            # By path, not by bytes: ONNX Runtime then maps external weights instead of copying them.
            session = self._ort.InferenceSession(
                str(file),
                self._session_options(),
                providers=[PROVIDERS[each] for each in self._fall_backs()],
                provider_options=self._provider_options(file),
            )
        except Exception as error:
            raise BackendError(
                f"graph {name}: {self.name} refused {file}: {one_line(error)}",
                cure="check the file with `ebseg verify`, and the provider's options, or export it again",
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

    def graph_file(self, bundle: Bundle, record: GraphRecord) -> Path:
        if record.compute is not None and record.compute.base == "bf16" and not record.compute.emulated:
            # ONNX knows BF16 convolutions from opset 22, in which TensorRT samples GridSample's nearest pixel.
            raise BackendError(
                f"graph {record.name}: {self.name} has no BF16 kernels for it",
                cure="build engines with `ebseg build`, or make a bundle with `ebseg quantize --emulate` to measure",
            )
        path = super().graph_file(bundle, record)
        self._hashes[path] = " ".join(bundle.graph_hashes(record).values())
        return path

    def gpu_host(self) -> GpuHost | None:
        if self.provider == "cpu":
            return None
        version = f"ONNX Runtime {self._ort.__version__}"
        if self.provider != "cuda":
            version = f"{_installed_tensorrt(self.provider)}, {version}"
        return find_gpu(self._device[1], engine=self.name, engine_version=version)

    def loaded(self, graph: OpenGraph) -> LoadedGraph:
        self._check_open(graph)
        engines = kept_engines_hash(self._used_options[graph.file])
        return LoadedGraph(sha256=engines, tf32=computes_in_tf32(self.provider, self.options))

    def _fall_backs(self) -> list[str]:
        """The provider and those it may give nodes to, as far as this ONNX Runtime has them."""
        available = self._ort.get_available_providers()
        return [each for each in FALL_BACKS[self.provider] if each == self.provider or PROVIDERS[each] in available]

    def _provider_options(self, file: Path) -> list[dict[str, str]]:
        engines = None
        host = self.gpu_host() if self.provider not in ("cpu", "cuda") else None
        if host is not None and file in self._hashes:
            engines = engine_cache_folder(self._hashes[file], host, self.options)
            engines.mkdir(parents=True, exist_ok=True)
            mark_used(engines)
            trim_folder(engines.parent, limit_bytes=LARGEST_KIND_BYTES, keep=engines)
        options = provider_options(self.provider, self.options, engine_cache=engines)
        self._used_options[file] = options[0]
        kept = self._fall_backs()
        return [each for name, each in zip(FALL_BACKS[self.provider], options, strict=True) if name in kept]

    def _session_options(self) -> Any:
        options = self._ort.SessionOptions()
        levels = self._ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if self.optimise else levels.ORT_DISABLE_ALL
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
        if self.provider == "cpu":
            # Products between Q/DQ pairs are computed on the rounded floats. Fused, int8 times int8 took four times as
            # long as FP32 on x86. Graphs of the recipe int8-cpu do not depend on this.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options

    def _run_impl(self, graph: OpenGraph, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = [tensor.name for tensor in graph.spec.outputs]
        try:
            return dict(zip(names, graph.session.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise self._failed(graph, error) from error

    def _run_resident_impl(self, graph: OpenGraph, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.io_binding:
            return super()._run_resident_impl(graph, inputs)
        values = {name: self._on_device(tensor) for name, tensor in inputs.items()}
        try:
            binding = graph.session.io_binding()
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for tensor in graph.spec.outputs:
                binding.bind_output(tensor.name, *self._device)
            graph.session.run_with_iobinding(binding)  # waits for the device
            found = binding.get_outputs()
        except Exception as error:
            raise self._failed(graph, error) from error
        return {
            tensor.name: ResidentTensor(dtype=np.dtype(tensor.dtype), shape=tuple(value.shape()), value=value)
            for tensor, value in zip(graph.spec.outputs, found, strict=True)
        }

    def upload(self, tensors: Mapping[str, Array]) -> dict[str, Tensor]:
        if not self.io_binding:
            return super().upload(tensors)
        return {
            name: ResidentTensor(dtype=array.dtype, shape=array.shape, value=self._on_device(array.copy()))
            for name, array in tensors.items()
        }

    def _on_device(self, tensor: Tensor) -> Any:
        """ONNX Runtime's own object for a tensor, on the device; no copy of one that is there, or on the CPU."""
        if isinstance(tensor, ResidentTensor):
            return tensor.value
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor), *self._device)

    def _fetch_impl(self, tensor: ResidentTensor) -> Array:
        array: Array = tensor.value.numpy()
        return array

    def _failed(self, graph: OpenGraph, error: Exception) -> BackendError:
        return BackendError(
            f"graph {graph.name}: {self.name} failed: {one_line(error)}",
            cure="check memory with `ebseg doctor` and the bundle with `ebseg verify`",
        )


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


def _installed_tensorrt(provider: str) -> str:
    """Release of the TensorRT that a provider loads, as far as pip knows it."""
    from importlib.metadata import PackageNotFoundError, version

    kind = "tensorrt-rtx" if provider == "nv-tensorrt-rtx" else "tensorrt"
    for name in (kind, f"{kind}-cu12", f"{kind}-cu13"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "TensorRT of unknown release"


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
