"""CUDA through NVIDIA's cuda-python: the default device.

It uses the GPU's primary context, which PyTorch, CuPy and TensorRT share. A host that made a context of its own gives
`own_context=True`: then whatever context is current on the calling thread is used, and none is chosen.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ...errors import BackendError
from ..gpu_host import driver_version, gpu_name

INSTALL = "pip install cuda-python, of the CUDA version the driver supports (12.x with JetPack 6)"
_NO_DRIVER = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorStubLibrary", "cudaErrorInvalidDevice")


class CudaPythonDevice:
    """The `Device` of cuda-python.

    Args:
        index: which GPU, as nvidia-smi counts those that CUDA_VISIBLE_DEVICES leaves.
        own_context: use the context that is current on the calling thread, and never choose one.

    Raises:
        BackendError: cuda-python is not installed, or there is no driver or no such GPU.
    """

    def __init__(self, index: int = 0, *, own_context: bool = False) -> None:
        self._own_context = own_context
        self._cuda = load_cuda()
        self._modules: list[Any] = []
        self._used = threading.local()
        self.index = index
        self.activate()
        if own_context:
            self.index = index = int(self._call("cudaGetDevice"))
        self.name = f"cuda-python, device {index}"
        flags = self._cuda.cudaDeviceAttr
        self._capability = (
            int(self._call("cudaDeviceGetAttribute", flags.cudaDevAttrComputeCapabilityMajor, index)),
            int(self._call("cudaDeviceGetAttribute", flags.cudaDevAttrComputeCapabilityMinor, index)),
        )

    @property
    def compute_capability(self) -> tuple[int, int]:
        return self._capability

    @property
    def identity(self) -> str:
        return gpu_name(bytes(self._call("cudaGetDeviceProperties", self.index).uuid.bytes))

    @property
    def driver(self) -> str:
        return driver_version(int(self._call("cudaDriverGetVersion")))

    def activate(self) -> None:
        if not self._own_context and not getattr(self._used, "chosen", False):
            self._call("cudaSetDevice", self.index)
            self._used.chosen = True

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_pinned(self, size: int) -> int:
        return int(self._call("cudaHostAlloc", size, self._cuda.cudaHostAllocPortable))

    def free_pinned(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def create_stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def create_event(self) -> int:
        return int(self._call("cudaEventCreateWithFlags", self._cuda.cudaEventDisableTiming))

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def record_event(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait_event(self, stream: int, event: int) -> None:
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def copy_to_device(self, target: int, source: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def copy_to_host(self, target: int, source: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def begin_capture(self, stream: int) -> None:
        # Thread-local: another thread may allocate or wait meanwhile without breaking this capture.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def load_kernel(self, image: bytes, name: str) -> int:
        driver = load_cuda("driver")
        module = _checked(driver, "cuModuleLoadData", driver.cuModuleLoadData(image))
        self._modules.append(module)
        return int(_checked(driver, "cuModuleGetFunction", driver.cuModuleGetFunction(module, name.encode())))

    def launch_kernel(
        self,
        kernel: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared: int,
        stream: int,
        arguments: Sequence[Any],
    ) -> None:
        driver = load_cuda("driver")
        # CUDA's own form, an array of addresses of the values: it takes structs as well.
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(each) for each in arguments))
        answer = driver.cuLaunchKernel(kernel, *grid, *block, shared, stream, ctypes.addressof(addresses), 0)
        _checked(driver, "cuLaunchKernel", answer)

    def _call(self, function: str, *arguments: Any) -> Any:
        return _checked(self._cuda, function, getattr(self._cuda, function)(*arguments))


def load_cuda(part: str = "runtime") -> ModuleType:
    """Import a part of cuda-python: "runtime", "driver" or "nvrtc".

    Raises:
        BackendError: it is not installed; names the line to install it.
    """
    import importlib

    older = {"runtime": "cudart", "driver": "cuda", "nvrtc": "nvrtc"}[part]
    try:
        return importlib.import_module(f"cuda.bindings.{part}")
    except ImportError as error:
        try:
            return importlib.import_module(f"cuda.{older}")  # before 12.6.1
        except ImportError:
            raise BackendError(f"cuda-python: {error}", cure=INSTALL) from error


def _checked(module: ModuleType, function: str, answer: tuple[Any, ...]) -> Any:
    """The value of an answer (error code, value…), or the error."""
    code = answer[0]
    if int(code) == 0:
        return answer[1] if len(answer) > 1 else None
    name = getattr(code, "name", str(code))
    if name in _NO_DRIVER:
        raise BackendError(
            f"cuda-python: {function} gave {name}: no NVIDIA driver, no such GPU, or a driver older than cuda-python",
            cure="check `nvidia-smi`, or use --backend onnxruntime",
        )
    cure = "see `ebseg doctor`"
    if "MemoryAllocation" in name or "OUT_OF_MEMORY" in name:
        cure = "free GPU memory, use a smaller canvas or fp16 engines, or allow fewer concurrent runs"
    raise BackendError(f"cuda-python: {function} gave {name}{_explanation(module, code)}", cure=cure)


def _explanation(module: ModuleType, code: Any) -> str:
    explain = getattr(module, "cudaGetErrorString", None)
    if explain is None:
        return ""
    error, text = explain(code)
    return f": {text.decode()}" if int(error) == 0 and text else ""
