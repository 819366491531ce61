"""CUDA through pycuda: for hosts that own a pycuda context and have no cuda-python.

pycuda offers no graph capture: the engines are then launched one by one. A host that has cuda-python as well gets
graphs in the same context with `CudaPythonDevice(own_context=True)`.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import BackendError
from ..gpu_host import driver_version

INSTALL = "pip install pycuda, which needs the CUDA toolkit to build"
STREAM_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING, which pycuda has no name for."""
OTHER_BINDING = "use CudaPythonDevice(own_context=True), which works in pycuda's context"


class PyCudaDevice:
    """The `Device` of pycuda, in the context that is current when it is made.

    The context has to be current in every thread that runs something: pycuda ends the process when a thread ends
    with contexts that were pushed and not popped, so none is pushed here.

    Raises:
        BackendError: pycuda is not installed, or no context is current.
    """

    name = "pycuda"

    def __init__(self) -> None:
        try:
            self._cuda: Any = importlib.import_module("pycuda.driver")
        except ImportError as error:
            raise BackendError(f"pycuda: {error}", cure=INSTALL) from error
        self._context = self._cuda.Context.get_current()
        if self._context is None:
            raise BackendError("pycuda: no context is current", cure="make one, e.g. `import pycuda.autoprimaryctx`")
        major, minor = self._call(self._cuda.Context.get_device().compute_capability)
        self._capability = (int(major), int(minor))
        self._memory: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._events: dict[int, Any] = {}
        self._kernels: dict[int, Any] = {}
        self._modules: list[Any] = []

    @property
    def compute_capability(self) -> tuple[int, int]:
        return self._capability

    @property
    def identity(self) -> str:
        device = self._cuda.Context.get_device()  # pycuda gives no UUID
        return f"{self._call(device.name)}, PCI {self._call(device.pci_bus_id)}"

    @property
    def driver(self) -> str:
        return driver_version(int(self._call(self._cuda.get_driver_version)))

    def activate(self) -> None:
        if self._cuda.Context.get_current() != self._context:
            raise BackendError(
                "pycuda: the device's context is not current in this thread",
                cure="push it before, and pop it after: context.push() … context.pop()",
            )

    def allocate(self, size: int) -> int:
        block = self._call(self._cuda.mem_alloc, size)
        self._memory[int(block)] = block
        return int(block)

    def free(self, address: int) -> None:
        self._call(self._memory.pop(address).free)

    def allocate_pinned(self, size: int) -> int:
        array = self._call(self._cuda.pagelocked_empty, size, np.uint8)
        address = int(array.ctypes.data)
        self._pinned[address] = array
        return address

    def free_pinned(self, address: int) -> None:
        self._call(self._pinned.pop(address).base.free)

    def create_stream(self) -> int:
        stream = self._call(self._cuda.Stream, STREAM_NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]  # pycuda destroys it with the object

    def synchronize(self, stream: int) -> None:
        self._call(self._stream(stream).synchronize)

    def create_event(self) -> int:
        event = self._call(self._cuda.Event, self._cuda.event_flags.DISABLE_TIMING)
        self._events[id(event)] = event
        return id(event)

    def destroy_event(self, event: int) -> None:
        del self._events[event]

    def record_event(self, event: int, stream: int) -> None:
        self._call(self._events[event].record, self._stream(stream))

    def wait_event(self, stream: int, event: int) -> None:
        self._call(self._stream(stream).wait_for_event, self._events[event])

    def copy_to_device(self, target: int, source: int, size: int, stream: int) -> None:
        self._call(self._cuda.memcpy_htod_async, target, _host_bytes(source, size), self._stream(stream))

    def copy_to_host(self, target: int, source: int, size: int, stream: int) -> None:
        self._call(self._cuda.memcpy_dtoh_async, _host_bytes(target, size), source, self._stream(stream))

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        self._call(self._cuda.memcpy_dtod_async, target, source, size, self._stream(stream))

    def begin_capture(self, stream: int) -> None:
        raise BackendError("pycuda: no graph capture", cure=OTHER_BINDING)

    def end_capture(self, stream: int) -> int:
        raise BackendError("pycuda: no graph capture", cure=OTHER_BINDING)

    def launch_graph(self, graph: int, stream: int) -> None:
        raise BackendError("pycuda: no graph capture", cure=OTHER_BINDING)

    def destroy_graph(self, graph: int) -> None:
        raise BackendError("pycuda: no graph capture", cure=OTHER_BINDING)

    def load_kernel(self, image: bytes, name: str) -> int:
        module = self._call(self._cuda.module_from_buffer, image)
        self._modules.append(module)
        kernel = self._call(module.get_function, name)
        self._kernels[id(kernel)] = kernel
        return id(kernel)

    def launch_kernel(
        self,
        kernel: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared: int,
        stream: int,
        arguments: Sequence[Any],
    ) -> None:
        packed = [_packed(each) for each in arguments]
        function = self._kernels[kernel]
        self._call(
            lambda: function(*packed, grid=grid, block=block, shared=shared, stream=self._stream(stream)),
        )

    def _stream(self, stream: int) -> Any:
        if stream not in self._streams:
            raise BackendError(
                f"pycuda: stream {stream:#x} was made by another library",
                cure=f"wait for it and hand over an array whose stream is None, or {OTHER_BINDING}",
            )
        return self._streams[stream]

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._cuda.Error as error:
            raise BackendError(f"pycuda: {' '.join(str(error).split())}", cure="see `ebseg doctor`") from error


def _host_bytes(address: int, size: int) -> Any:
    """Host memory as a buffer, which is how pycuda takes it."""
    return (ctypes.c_uint8 * size).from_address(address)


def _packed(argument: Any) -> Any:
    """A kernel's argument as pycuda takes it: numpy scalars, and structures as numpy voids."""
    if isinstance(argument, ctypes.Structure):
        return np.void(bytes(argument))
    if isinstance(argument, ctypes.c_void_p):
        return np.uintp(argument.value or 0)
    return np.array(argument.value, dtype=np.dtype(type(argument)))[()]
