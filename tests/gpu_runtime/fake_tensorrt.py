"""TensorRT's Python module, as much of it as the runtime calls, over the recording device.

A plan holds an ONNX graph and a profile; a run is a kernel on the recording device that computes the graph with ONNX
Runtime on the bytes that lie at the bound addresses. Every class here has the real one's names and parameters, which
test_gpu_runtime_conformance.py holds against the real module.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
from ebseg_deploy.contract import (
    ENGINE_SCHEMA_VERSION,
    ENGINES_FOLDER,
    DimensionRange,
    EngineMemory,
    EngineSettings,
    EngineSidecar,
    FileRecord,
    GraphRecord,
)
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.device import DeviceMisuseError, RecordingDevice
from ebseg_deploy.runtime.engine_file import host_platform, plan_name, sidecar_path

VERSION = "1.7.1.116"
PROFILE = {
    "classes": (1, 4, 12),
    "classes_and_background": (2, 5, 13),
    "prompts": (1, 14, 112),
    "tokens": (2, 16, 77),
    "batch": (1, 1, 4),
}
ACTIVATION_BYTES = 512


def write_engines(folder: Path, *, capability: str = "8.9", version: str = VERSION) -> Path:
    """Engines of all graphs of a bundle, where `ebseg build` puts them; gives the bundle's folder."""
    bundle = Bundle.open(folder)
    for record in bundle.manifest.graphs:
        _write_engine(bundle, record, capability, version)
    return folder


def _write_engine(bundle: Bundle, record: GraphRecord, capability: str, version: str) -> None:
    header = json.dumps({"name": record.name}).encode()
    plan = len(header).to_bytes(4, "little") + header + bundle.file(record.file).read_bytes()
    path = bundle.path / ENGINES_FOLDER / "tensorrt-rtx" / record.precision / plan_name(record.name, record.size)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plan)
    dynamic = {length for tensor in record.spec.inputs for length in tensor.shape if isinstance(length, str)}
    sidecar = EngineSidecar(
        schema_version=ENGINE_SCHEMA_VERSION,
        plan=FileRecord(bytes=len(plan), sha256=hashlib.sha256(plan).hexdigest()),
        graph=record.name,
        precision=record.precision,
        size=record.size,
        model=bundle.model.name,
        spec=record.spec,
        source={record.file: bundle.manifest.files[record.file].sha256},
        target="tensorrt-rtx",
        tensorrt_version=version,
        platform=host_platform(),
        settings=EngineSettings(
            compute_capabilities=(capability,),
            profile={
                name: DimensionRange(min=least, opt=best, max=most)
                for name, (least, best, most) in PROFILE.items()
                if name in dynamic
            },
            workspace_bytes=None,
            tf32=False,
            keep_fp32=(),
        ),
        memory=EngineMemory(weights_bytes=None, activation_bytes=None, scratch_bytes=None, builder_peak_bytes=None),
        layers=(),
        build_seconds=0.1,
        provenance={},
    )
    sidecar_path(path).write_bytes(msgspec.json.encode(sidecar))


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    UINT8 = 5
    INT64 = 8


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1


class IRuntimeConfig:
    def __init__(self) -> None:
        self._strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> DynamicShapesKernelSpecializationStrategy:
        return self._strategy

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, value: DynamicShapesKernelSpecializationStrategy) -> None:
        self._strategy = value


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self) -> None:
        self.ready = True


DTYPES = {"tensor(float)": DataType.FLOAT, "tensor(uint8)": DataType.UINT8, "tensor(int32)": DataType.INT32}
NUMPY = {DataType.FLOAT: np.float32, DataType.UINT8: np.uint8, DataType.INT32: np.int32}


class FakeTensorRt:
    """The module. `refuse` makes every plan a bad one; `fail_after` lets so many runs start and then no more.

    Attributes:
        plans: how many plans reached the deserialiser.
        live_contexts: execution contexts that exist.
    """

    def __init__(
        self,
        device: RecordingDevice,
        *,
        refuse: bool = False,
        fail_after: int | None = None,
        capturable: bool = True,
        rtx: bool = True,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self.__version__ = VERSION
        self.device = device
        self.refuse, self.fail_after, self.is_capturable, self.rtx = refuse, fail_after, capturable, rtx
        self.changes = {} if changes is None else changes
        self.plans = self.runs = self.live_contexts = 0
        self.TensorIOMode, self.TensorLocation, self.DataType, self.ILogger = (
            TensorIOMode,
            TensorLocation,
            DataType,
            ILogger,
        )

        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def Runtime(self, logger: ILogger) -> Runtime:  # noqa: N802
        assert logger.ready, "ILogger.__init__ was not called"
        return Runtime(self, logger)


class Runtime:
    def __init__(self, trt: FakeTensorRt, logger: ILogger) -> None:
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        self._trt.plans += 1
        if self._trt.refuse:
            self._logger.log(ILogger.Severity.ERROR, "stdArchiveReader.h:\n magic tag does not match")
            return None
        return ICudaEngine(self._trt, serialized_engine)


class ICudaEngine:
    def __init__(self, trt: FakeTensorRt, plan: bytes) -> None:
        import onnxruntime

        length = int.from_bytes(plan[:4], "little")
        self.trt = trt
        self.graph = json.loads(plan[4 : 4 + length])["name"]
        self.session = onnxruntime.InferenceSession(plan[4 + length :], providers=["CPUExecutionProvider"])
        self.inputs = {each.name: each for each in self.session.get_inputs()}
        self.outputs = {each.name: each for each in self.session.get_outputs()}
        self.tensors = {**self.inputs, **self.outputs}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.trt.changes.get("dtype") or DTYPES[self.tensors[name].type]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return self.trt.changes.get("location", TensorLocation.DEVICE)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(length, str) else length for length in self.tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert name in self.inputs
        assert profile_index == 0
        assert min(self.get_tensor_shape(name)) < 0  # what TensorRT says of fixed shapes is not written anywhere
        shape = self.tensors[name].shape
        return [tuple(PROFILE[d][place] if isinstance(d, str) else d for d in shape) for place in range(3)]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig | None = None) -> IExecutionContext:
        context = IExecutionContext(self)
        context.specialised = (
            runtime_config is not None
            and runtime_config.dynamic_shapes_kernel_specialization_strategy
            is DynamicShapesKernelSpecializationStrategy.EAGER
        )
        return context


class IExecutionContext:
    """Its activation memory is written by every run: two runs at once are a race, as they are in truth."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._device, self._trt = engine, engine.trt.device, engine.trt
        self._activations = self._device.allocate(ACTIVATION_BYTES)
        self._shapes = {name: engine.get_tensor_shape(name) for name in engine.inputs}
        self._addresses: dict[str, int] = {}
        self._warmed: set[tuple[tuple[int, ...], ...]] = set()
        self._trt.live_contexts += 1

    def __del__(self) -> None:
        self._trt.live_contexts -= 1
        with contextlib.suppress(DeviceMisuseError):  # the block then stays, and check_released tells
            self._device.free(self._activations)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fixed = self._engine.get_tensor_shape(name)
        least, _, most = self._engine.get_tensor_profile_shape(name, 0) if min(fixed) < 0 else [fixed] * 3
        if len(shape) != len(least) or not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self._shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        if self._trt.changes.get("inconsistent"):
            raise RuntimeError("Error in\n inferring shapes")
        return [name for name, shape in self._shapes.items() if min(shape) < 0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        if self._trt.changes.get("vague"):
            return (-1,)
        lengths = {}
        for given, tensor in self._engine.inputs.items():
            lengths.update(zip(tensor.shape, self._shapes[given], strict=True))
        return tuple(lengths.get(each, each) for each in self._engine.outputs[name].shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine.tensors or memory % 256:
            return False
        self._addresses[name] = memory
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self._trt.is_capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, device = self._engine, self._device
        self._trt.runs += 1
        if self._trt.fail_after is not None and self._trt.runs > self._trt.fail_after:
            return False
        unset = engine.tensors.keys() - self._addresses.keys()
        if unset or self.infer_shapes():
            raise DeviceMisuseError(f"engine {engine.graph} starts without addresses of {unset} or without shapes")
        spans = {
            name: (self._addresses[name], math.prod(shape) * np.dtype(NUMPY[engine.get_tensor_dtype(name)]).itemsize)
            for name, shape in ((name, self.get_tensor_shape(name)) for name in engine.tensors)
        }
        shapes = {name: self.get_tensor_shape(name) for name in engine.tensors}

        def act() -> None:
            given = {
                name: device.read(*spans[name]).view(NUMPY[engine.get_tensor_dtype(name)]).reshape(shapes[name])
                for name in engine.inputs
            }
            for name, found in zip(engine.outputs, engine.session.run(None, given), strict=True):
                assert found.shape == shapes[name]
                device.read(*spans[name])[...] = np.ascontiguousarray(found).reshape(-1).view(np.uint8)

        reads = [spans[name] for name in engine.inputs]
        writes = [*(spans[name] for name in engine.outputs), (self._activations, ACTIVATION_BYTES)]
        device.enqueue(engine.graph, stream_handle, reads=reads, writes=writes, act=act)
        key = tuple(sorted(self._shapes.items()))
        if device.operations[-1].captured and self._trt.rtx and not self.specialised:
            raise DeviceMisuseError(f"engine {engine.graph} is captured with kernels that are still to be replaced")
        if device.operations[-1].captured and key not in self._warmed:
            raise DeviceMisuseError(f"engine {engine.graph} is captured before it ran once with these shapes")
        self._warmed.add(key)
        return True


REAL_CLASSES = SimpleNamespace(
    Runtime=Runtime,
    ICudaEngine=ICudaEngine,
    IExecutionContext=IExecutionContext,
    IRuntimeConfig=IRuntimeConfig,
    DynamicShapesKernelSpecializationStrategy=DynamicShapesKernelSpecializationStrategy,
    ILogger=ILogger,
    TensorIOMode=TensorIOMode,
    TensorLocation=TensorLocation,
    DataType=DataType,
)
"""What stands for a class of the real module, by its name there."""
