"""What the fakes offer exists in the real modules, with the parameters they have here.

The runtime runs against the fakes in the other tests, so whatever it calls is in them; here that is held against
TensorRT for RTX and cuda-python as installed, which need no GPU to be asked for their signatures.
"""

from __future__ import annotations

import inspect
import re
import uuid
from types import ModuleType
from typing import Any

import pytest
from ebseg_deploy.errors import BackendError
from ebseg_deploy.runtime.device import CudaPythonDevice, Device, PyCudaDevice, RecordingDevice
from ebseg_deploy.runtime.device.cuda_python import load_cuda
from ebseg_deploy.runtime.gpu_host import gpu_name
from fake_tensorrt import REAL_CLASSES


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def trt(request: pytest.FixtureRequest) -> ModuleType:
    return pytest.importorskip(request.param)


def public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


def real_parameters(function: Any) -> list[list[str]]:
    """Parameter names of every overload, as pybind11 writes them into the docstring."""
    signatures = re.findall(
        rf"^(?:\d+\. )?{function.__name__}\(self[^,)]*,? ?(.*)\) ->", function.__doc__, re.MULTILINE
    )
    return [re.findall(r"(\w+): ", each) for each in signatures]


RTX_ONLY = {"is_stream_capturable", "dynamic_shapes_kernel_specialization_strategy", "LAZY", "EAGER"}
"""What the runtime asks for with hasattr or getattr."""


@pytest.mark.parametrize("name", sorted(vars(REAL_CLASSES)))
def test_fake_class_is_like_the_real_one(trt: ModuleType, name: str) -> None:
    fake, real = getattr(REAL_CLASSES, name), getattr(trt, name, None)
    for attribute, value in public(fake).items():
        if trt.__name__ == "tensorrt" and attribute in RTX_ONLY and not hasattr(real, attribute):
            continue
        assert hasattr(real, attribute), f"{name}.{attribute} is not in {trt}"
        if not inspect.isfunction(value):
            continue
        wanted = list(inspect.signature(value).parameters)[1:]
        overloads = real_parameters(getattr(real, attribute))
        assert overloads, f"{name}.{attribute}: no signature in its docstring"
        assert any(each[: len(wanted)] == wanted for each in overloads), f"{name}.{attribute}: {overloads}"


def test_a_fake_method_that_is_not_real_would_be_seen(trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REAL_CLASSES.Runtime, "deserialize_engine", lambda self, plan: None, raising=False)
    with pytest.raises(AssertionError, match="deserialize_engine is not in"):
        test_fake_class_is_like_the_real_one(trt, "Runtime")


def test_real_logger_takes_our_subclass_and_a_broken_plan_is_refused(trt: ModuleType) -> None:
    from ebseg_deploy.runtime.backends.tensorrt_engine import Engine, _log

    log = _log(trt)
    log.log(trt.ILogger.Severity.ERROR, "two\n lines")
    log.log(trt.ILogger.Severity.WARNING, "not kept")
    assert list(log.messages) == ["two lines"]
    try:
        trt.Runtime(_log(trt))
    except Exception:
        pytest.skip("TensorRT makes no Runtime without a driver")
    with pytest.raises(BackendError, match="engine head: TensorRT refused the engine"):
        Engine(trt, b"not a plan", "head")


def test_devices_have_the_protocols_methods() -> None:
    for name, wanted in public(Device).items():
        for kind in (CudaPythonDevice, PyCudaDevice, RecordingDevice):
            found = getattr(kind, name)
            if inspect.isfunction(wanted):
                assert inspect.signature(found) == inspect.signature(wanted), f"{kind.__name__}.{name}"
    assert isinstance(RecordingDevice(), Device)


class TestCudaPythonWithoutADriver:
    @pytest.fixture(autouse=True)
    def no_driver(self) -> None:
        pytest.importorskip("cuda.bindings.runtime")
        runtime = load_cuda()
        if int(runtime.cudaGetDeviceCount()[0]) == 0:
            pytest.skip("this machine has a GPU")

    def test_no_device_to_be_had(self) -> None:
        for options in ({}, {"own_context": True}):
            with pytest.raises(BackendError, match=r"cuda(SetDevice|GetDevice) gave cudaError.*--backend onnxruntime"):
                CudaPythonDevice(**options)

    @pytest.mark.parametrize(
        ("method", "arguments"),
        [
            ("activate", ()),
            ("allocate", (256,)),
            ("free", (4096,)),
            ("allocate_pinned", (256,)),
            ("free_pinned", (4096,)),
            ("create_stream", ()),
            ("synchronize", (4096,)),
            ("create_event", ()),
            ("record_event", (4096, 4096)),
            ("wait_event", (4096, 4096)),
            ("copy_to_device", (4096, 8192, 16, 4096)),
            ("copy_to_host", (4096, 8192, 16, 4096)),
            ("copy_on_device", (4096, 8192, 16, 4096)),
            ("begin_capture", (4096,)),
            ("end_capture", (4096,)),
            ("launch_graph", (4096, 4096)),
            ("destroy_graph", (4096,)),
            ("destroy_event", (4096,)),
            ("destroy_stream", (4096,)),
        ],
    )
    def test_real_bindings_take_our_arguments(self, method: str, arguments: tuple[int, ...]) -> None:
        """Each call reaches CUDA, which answers that there is no driver: no name is wrong, and no argument's type."""
        device = object.__new__(CudaPythonDevice)
        device.__dict__.update(index=0, name="cuda-python", _cuda=load_cuda(), _own_context=False)
        device.__dict__["_used"] = type("Thread", (), {})()
        with pytest.raises(BackendError, match=r"gave cudaError(InsufficientDriver|NoDevice)"):
            getattr(device, method)(*arguments)

    def test_who_the_gpu_is_is_asked_of_the_real_bindings(self) -> None:
        runtime = load_cuda()
        device = object.__new__(CudaPythonDevice)
        device.__dict__.update(index=0, _cuda=runtime)
        with pytest.raises(BackendError, match=r"cudaGetDeviceProperties gave cudaError(InsufficientDriver|NoDevice)"):
            _ = device.identity
        assert "CUDA " in device.driver
        # What the answer's UUID looks like needs no GPU: sixteen bytes.
        assert gpu_name(bytes(runtime.cudaDeviceProp().uuid.bytes)) == f"GPU-{uuid.UUID(int=0)}"
