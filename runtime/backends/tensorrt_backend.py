"""TensorRT and TensorRT for RTX: runs a bundle's engines on an NVIDIA GPU.

As a `Backend` it takes and gives numpy arrays, graph by graph, which is what `ebseg verify` and the text encoder need.
A `Segmenter` uses `engine_pipeline.EnginePipeline` with it, which keeps everything between the graphs on the GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...contract import ENGINES_FOLDER, EngineTarget, GraphRecord, GraphSpec
from ...errors import BackendError, BundleError
from ..device import CudaPythonDevice, Device, DeviceArray, device_array, pinned_array
from ..device.arrays import host_address
from ..engine_file import PLAN_SUFFIX, EngineHost, plan_name, read_engine
from ..gpu_host import GpuHost
from .base import Array, Backend, LoadedGraph, OpenGraph
from .tensorrt_engine import Engine, EngineContext, load_tensorrt, numpy_dtype

if TYPE_CHECKING:
    from ..bundle import Bundle


@dataclass(frozen=True, kw_only=True, eq=False)
class _Expected:
    """What a plan must have been built from."""

    record: GraphRecord
    source: dict[str, str]


class TensorRtBackend(Backend):
    """Runs .plan files, each with its sidecar beside it.

    Args:
        target: "tensorrt" or "tensorrt-rtx".
        device: the GPU; cuda-python's first by default.
        engines: the folder that `ebseg build -o` wrote; a bundle's own engines/<target>/<precision> by default.
        module: TensorRT's Python module; the target's own by default.
        reason: why this backend was picked.

    Raises:
        BackendError: TensorRT or cuda-python is not installed, or there is no GPU.
    """

    def __init__(
        self,
        target: EngineTarget = "tensorrt",
        *,
        device: Device | None = None,
        engines: Path | None = None,
        module: ModuleType | None = None,
        reason: str = "asked for by name",
    ) -> None:
        super().__init__(target, reason=reason)
        self.target = target
        self._engines = engines
        self._trt = load_tensorrt(target) if module is None else module
        self.device: Device = CudaPythonDevice() if device is None else device
        self._expected: dict[Path, _Expected] = {}

    def graph_file(self, bundle: Bundle, record: GraphRecord) -> Path:
        """The engine built from a graph.

        Raises:
            BackendError: it was not built; names the command.
        """
        folder = self._engines
        if folder is None:
            folder = bundle.path / ENGINES_FOLDER / self.target / record.precision
        plan = folder / plan_name(record.name, record.size)
        if not plan.is_file():
            raise BackendError(
                f"graph {record.name}: no engine {plan}",
                cure=f"ebseg build {bundle.source} --target {self.target} --precision {record.precision}",
            )
        self._expected[plan] = _Expected(record=record, source=bundle.graph_hashes(record))
        return plan

    def _open_impl(self, file: Path, name: str, spec: GraphSpec | None) -> tuple[Any, GraphSpec]:
        if not file.is_file():
            raise BackendError(f"graph {name}: no file {file}", cure="give the path of a .plan file")
        if file.suffix != PLAN_SUFFIX:
            raise BackendError(
                f"graph {name}: {file.name} is no engine", cure="build one with `ebseg build`, or use onnxruntime"
            )
        self.device.activate()
        expected = self._expected.get(file)
        try:
            sidecar, plan = read_engine(
                file,
                host=EngineHost(
                    target=self.target,
                    tensorrt_version=self._trt.__version__,
                    compute_capability="{}.{}".format(*self.device.compute_capability),
                ),
                graph=None if expected is None else expected.record,
                source=None if expected is None else expected.source,
            )
        except BundleError as error:
            raise BackendError(error.message, cure=error.cure) from error
        engine = Engine(self._trt, plan, name, sidecar.spec)
        loaded = LoadedGraph(sha256=sidecar.plan.sha256, tf32=sidecar.settings.tf32)
        return _LanePool(engine, self.device, loaded), engine.spec

    def gpu_host(self) -> GpuHost:
        self.device.activate()
        return GpuHost(
            engine=self.target,
            engine_version=str(self._trt.__version__),
            gpu=self.device.identity,
            compute_capability="{}.{}".format(*self.device.compute_capability),
            driver=self.device.driver,
        )

    def loaded(self, graph: OpenGraph) -> LoadedGraph:
        self._check_open(graph)
        found: LoadedGraph = graph.session.loaded
        return found

    def takes(self, graph: OpenGraph, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        self._check_open(graph)
        engine = engine_of(graph)
        return all(
            least <= length <= greatest
            for name, shape in shapes.items()
            for length, least, greatest in zip(shape, *engine.limits(name), strict=True)
        )

    def _run_impl(self, graph: OpenGraph, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.device.activate()
        with graph.session.lane() as lane:
            outputs: dict[str, Array] = lane.run(inputs)
            return outputs

    def _close_impl(self, graph: OpenGraph) -> None:
        self.device.activate()
        graph.session.close()


def engine_of(graph: OpenGraph) -> Engine:
    """The engine behind a graph that a TensorRtBackend opened."""
    engine: Engine = graph.session.engine
    return engine


class _LanePool:
    """An engine, and a lane for every run that goes on at the same time."""

    def __init__(self, engine: Engine, device: Device, loaded: LoadedGraph) -> None:
        self.engine = engine
        self.loaded = loaded
        self._device = device
        self._free: list[_Lane] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def lane(self) -> Iterator[_Lane]:
        """A lane of one's own. It is not used again after an error: what was on its stream is unknown."""
        with self._lock:
            lane = self._free.pop() if self._free else None
        lane = _Lane(self.engine, self._device) if lane is None else lane
        try:
            yield lane
        except BaseException:
            with suppress(BackendError):  # after a failed run every call fails; the first error tells
                lane.close()
            raise
        with self._lock:
            if not self._closed:
                self._free.append(lane)
                return
        lane.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for lane in free:
            lane.close()


class _Lane:
    """A context with buffers for the profile's greatest shapes, and pinned arrays to reach them."""

    def __init__(self, engine: Engine, device: Device) -> None:
        self._device = device
        self._spec = engine.spec
        with ExitStack() as owned:  # gives back what was made if the rest cannot be made
            self._stream = device.create_stream()
            owned.callback(device.destroy_stream, self._stream)
            self._context: EngineContext | None = engine.create_context()
            self._arrays: dict[str, DeviceArray] = {}
            self._staging: dict[str, Array] = {}
            largest = self._context.largest_shapes()
            for tensor in (*engine.spec.inputs, *engine.spec.outputs):
                shape, dtype = largest[tensor.name], numpy_dtype(tensor)
                self._arrays[tensor.name] = device_array(device, shape, dtype, owned)
                self._staging[tensor.name] = pinned_array(device, shape, dtype, owned)
                self._context.bind(tensor.name, self._arrays[tensor.name].address)
            self._owned = owned.pop_all()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert self._context is not None
        shapes = self._context.set_shapes({name: array.shape for name, array in inputs.items()})
        for name, array in inputs.items():
            staged = self._staging[name].reshape(-1)[: array.size]
            staged[...] = array.reshape(-1)
            self._device.copy_to_device(self._arrays[name].address, host_address(staged), staged.nbytes, self._stream)
        self._context.enqueue(self._stream)
        found = {}
        for name, shape in shapes.items():
            staged = self._staging[name].reshape(-1)[: int(np.prod(shape))]
            self._device.copy_to_host(host_address(staged), self._arrays[name].address, staged.nbytes, self._stream)
            found[name] = staged.reshape(shape)
        self._device.synchronize(self._stream)
        return {name: array.copy() for name, array in found.items()}  # the next run writes over the staging

    def close(self) -> None:
        self._owned.callback(self._drop_context)  # runs first: the context's memory goes before its stream
        self._owned.callback(self._device.synchronize, self._stream)
        self._owned.close()

    def _drop_context(self) -> None:
        self._context = None
