"""The pycuda device over a stand-in for pycuda.driver, which does its work on the recording device."""

from __future__ import annotations

import ctypes
import sys
import weakref
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ebseg_deploy.contract import Size
from ebseg_deploy.errors import BackendError
from ebseg_deploy.runtime.backends.tensorrt_backend import TensorRtBackend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.device import PyCudaDevice, RecordingDevice
from ebseg_deploy.runtime.engine_pipeline import EnginePipeline
from ebseg_deploy.runtime.kernels.device_label_map import LabelMapShape
from fake_tensorrt import FakeTensorRt


class CudaError(Exception):
    pass


def fake_driver(gpu: RecordingDevice) -> ModuleType:
    """pycuda.driver: objects that own, buffers instead of addresses, streams and events as objects.

    Names and parameters as in pycuda's src/wrapper/wrap_cudadrv.cpp.
    """

    class DeviceAllocation:
        def __init__(self, size: int) -> None:
            if size > 1 << 30:
                raise CudaError("cuMemAlloc failed:\n out of memory")
            self.address = gpu.allocate(size)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            gpu.free(self.address)

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            assert flags == 1
            self.handle = gpu.create_stream()
            weakref.finalize(self, gpu.destroy_stream, self.handle)

        def synchronize(self) -> None:
            gpu.synchronize(self.handle)

        def wait_for_event(self, evt: Event) -> None:
            gpu.wait_event(self.handle, evt.handle)

    class Event:
        def __init__(self, flags: int = 0) -> None:
            assert flags == event_flags.DISABLE_TIMING
            self.handle = gpu.create_event()
            weakref.finalize(self, gpu.destroy_event, self.handle)

        def record(self, stream: Stream) -> None:
            gpu.record_event(self.handle, stream.handle)

    def pagelocked_empty(shape: int, dtype: type) -> Any:
        address = gpu.allocate_pinned(shape * np.dtype(dtype).itemsize)
        return SimpleNamespace(
            ctypes=SimpleNamespace(data=address), base=SimpleNamespace(free=lambda: gpu.free_pinned(address))
        )

    def memcpy_htod_async(dest: int, src: Any, stream: Stream) -> None:
        gpu.copy_to_device(dest, ctypes.addressof(src), memoryview(src).nbytes, stream.handle)

    def memcpy_dtoh_async(dest: Any, src: int, stream: Stream) -> None:
        gpu.copy_to_host(ctypes.addressof(dest), src, memoryview(dest).nbytes, stream.handle)

    def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream) -> None:
        gpu.copy_on_device(dest, src, size, stream.handle)

    event_flags = SimpleNamespace(DISABLE_TIMING=2)
    driver = ModuleType("pycuda.driver")
    driver.current = object()
    driver.launches = launches = []
    driver.Context = SimpleNamespace(
        get_current=lambda: driver.current,
        get_device=lambda: SimpleNamespace(
            compute_capability=lambda: (8, 9), name=lambda: "GeForce", pci_bus_id=lambda: "0000:01:00.0"
        ),
    )
    driver.get_driver_version = lambda: 12040
    function = lambda *arguments, **options: launches.append((arguments, options))  # noqa: E731
    driver.module_from_buffer = lambda buffer: SimpleNamespace(get_function=lambda name: function)
    driver.__dict__.update(
        Error=CudaError,
        mem_alloc=DeviceAllocation,
        pagelocked_empty=pagelocked_empty,
        Stream=Stream,
        Event=Event,
        event_flags=event_flags,
        memcpy_htod_async=memcpy_htod_async,
        memcpy_dtoh_async=memcpy_dtoh_async,
        memcpy_dtod_async=memcpy_dtod_async,
    )
    return driver


@pytest.fixture
def driver(device: RecordingDevice, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = fake_driver(device)
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", made)
    return made


@pytest.mark.usefixtures("driver")
def test_a_whole_run_without_graphs_and_everything_given_back(engine_bundle: Path, device: RecordingDevice) -> None:
    backend = TensorRtBackend("tensorrt-rtx", device=PyCudaDevice(), module=FakeTensorRt(device))
    host = backend.gpu_host()
    assert (host.gpu, host.compute_capability) == ("GeForce, PCI 0000:01:00.0", "8.9")
    assert host.driver.endswith("CUDA 12.4")
    pipeline = EnginePipeline(Bundle.open(engine_bundle), backend, precision="fp32", sentinel=False)
    reference = EnginePipeline(
        Bundle.open(engine_bundle),
        TensorRtBackend("tensorrt-rtx", device=device, module=FakeTensorRt(device)),
        precision="fp32",
        sentinel=False,
    )
    size = Size(height=64, width=64)
    random = np.random.default_rng(0)
    words = {"text_embeddings": np.eye(4, 16, dtype=np.float32), "seen": np.ones(3, np.float32)}
    picture = {"valid_size": np.array([[64, 64]], np.int32)}
    for run in range(3):
        picture["image"] = random.integers(0, 256, (1, 3, 64, 64), dtype=np.uint8)
        if run == 1:  # where a graph would be captured
            with pytest.warns(UserWarning, match="without CUDA graphs.*pycuda: no graph capture"):
                found = pipeline.run(size, picture, words)
        else:
            found = pipeline.run(size, picture, words)
        wanted = reference.run(size, picture, words)
        np.testing.assert_array_equal(found.mask_logits, wanted.mask_logits)
        np.testing.assert_array_equal(found.class_probabilities, wanted.class_probabilities)
    pipeline.close()
    reference.close()


def test_kernels_get_scalars_and_structures(driver: ModuleType) -> None:
    device = PyCudaDevice()
    stream = device.create_stream()
    kernel = device.load_kernel(b"cubin", "label_map_u8")
    shape = LabelMapShape(*range(10))
    device.launch_kernel(kernel, (3, 4, 1), (64, 1, 1), 256, stream, (ctypes.c_void_p(4096), ctypes.c_int(-7), shape))
    [((address, number, structure), options)] = driver.launches
    assert (address, number) == (4096, -7)
    assert (address.dtype, number.dtype) == (np.uintp, np.int32)
    np.testing.assert_array_equal(np.frombuffer(structure.tobytes(), np.int32), np.arange(10))
    assert (options["grid"], options["block"], options["shared"]) == ((3, 4, 1), (64, 1, 1), 256)
    assert options["stream"].handle == stream
    options.clear()
    device.destroy_stream(stream)


@pytest.mark.usefixtures("driver")
def test_errors_are_ours() -> None:
    device = PyCudaDevice()
    assert device.compute_capability == (8, 9)
    with pytest.raises(BackendError, match="pycuda: cuMemAlloc failed: out of memory"):
        device.allocate(1 << 40)
    with pytest.raises(BackendError, match=r"stream 0x7 was made by another library.*own_context=True"):
        device.synchronize(7)


def test_the_context_must_be_current(driver: ModuleType) -> None:
    device = PyCudaDevice()
    device.activate()
    driver.current = object()
    with pytest.raises(BackendError, match="not current in this thread"):
        device.activate()
    driver.current = None
    with pytest.raises(BackendError, match="no context is current"):
        PyCudaDevice()


def test_pycuda_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    with pytest.raises(BackendError, match="pip install pycuda"):
        PyCudaDevice()
