"""A deserialised engine and its execution contexts: TensorRT 10.3 or newer, 11, or TensorRT for RTX.

The three share the calls used here: tensors addressed by name, shapes set by name, `execute_async_v3`. An engine may
be used by several threads; a context by one at a time.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from ...contract import Dimension, DType, EngineTarget, GraphSpec, TensorSpec
from ...errors import BackendError

MODULES: dict[EngineTarget, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL: dict[EngineTarget, str] = {
    "tensorrt": "pip install tensorrt-cu12; on a Jetson install JetPack's python3-libnvinfer instead",
    "tensorrt-rtx": "pip install tensorrt-rtx-cu12",
}
_DTYPES: dict[str, DType] = {"UINT8": "uint8", "INT32": "int32", "FLOAT": "float32", "HALF": "float16"}


def load_tensorrt(target: EngineTarget) -> ModuleType:
    """Import a target's Python module.

    Raises:
        BackendError: it is not installed, or its libraries do not load; names the line to install it.
    """
    try:
        return importlib.import_module(MODULES[target])
    except (ImportError, OSError) as error:
        text = " ".join(str(error).split())
        raise BackendError(f"backend {target}: {text}", cure=INSTALL[target]) from error


class Engine:
    """A plan that TensorRT has taken. The plan must have been checked: see `engine_file.read_engine`.

    Args:
        trt: the target's module.
        plan: the engine's bytes.
        name: what to call it in errors.
        named: a border whose names the engine's dynamic dimensions get; else they are called after their tensors.

    Raises:
        BackendError: TensorRT refuses the plan, or a tensor has a type or a place that the runtime cannot hand over.
    """

    def __init__(self, trt: ModuleType, plan: bytes, name: str, named: GraphSpec | None = None) -> None:
        self.name = name
        self._trt = trt
        self._log = _log(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self.error("TensorRT refused the engine", cure="build it again on this machine with `ebseg build`")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        known = {tensor.name: tensor for tensor in (*named.inputs, *named.outputs)} if named is not None else {}
        inputs = [each for each in names if self._engine.get_tensor_mode(each) == trt.TensorIOMode.INPUT]
        self.spec = GraphSpec(
            inputs=tuple(self._tensor(each, known.get(each)) for each in inputs),
            outputs=tuple(self._tensor(each, known.get(each)) for each in names if each not in inputs),
        )
        self._limits = {tensor.name: self._profile(tensor) for tensor in self.spec.inputs}

    def limits(self, tensor: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Least and greatest shape of an input."""
        return self._limits[tensor]

    def create_context(self) -> EngineContext:
        """State for one run at a time; it takes the engine's activation memory on the GPU."""
        strategies = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        config = None
        if strategies is None:
            context = self._engine.create_execution_context()
        else:
            # TensorRT for RTX compiles kernels for a shape at its first run. By default it does so beside the run, on
            # slower kernels meanwhile, and a CUDA graph would keep those for good; here the run waits.
            config = self._engine.create_runtime_config()
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            context = self._engine.create_execution_context(config)
        if context is None:
            raise self.error(
                "TensorRT gave no execution context", cure="free GPU memory, or allow fewer concurrent runs"
            )
        return EngineContext(self, context, config)

    def check_shape(self, tensor: TensorSpec, shape: tuple[int, ...]) -> None:
        """Raise BackendError if an input's shape is outside the engine's profile."""
        for length, least, greatest, dimension in zip(shape, *self.limits(tensor.name), tensor.shape, strict=True):
            if not least <= length <= greatest:
                raise BackendError(
                    f"engine {self.name}: {tensor.name} has {dimension} = {length}, built for {least} to {greatest}",
                    cure=f"rebuild it with `ebseg build`, e.g. {_option(dimension, length, least, greatest)}",
                )

    def error(self, what: str, cure: str) -> BackendError:
        """An error with what TensorRT logged last."""
        said = " | ".join(self._log.messages)
        return BackendError(f"engine {self.name}: {what}{f': {said}' if said else ''}", cure=cure)

    def _profile(self, tensor: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
        fixed = tuple(length for length in tensor.shape if isinstance(length, int))
        if len(fixed) == len(tensor.shape):
            return fixed, fixed
        least, _, greatest = self._engine.get_tensor_profile_shape(tensor.name, 0)
        return tuple(least), tuple(greatest)

    def _tensor(self, name: str, known: TensorSpec | None) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise BackendError(
                f"engine {self.name}: tensor {name} is {kind}", cure=f"build it with borders of {', '.join(_DTYPES)}"
            )
        if self._engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise BackendError(
                f"engine {self.name}: tensor {name} is wanted on the host, so a shape depends on its values",
                cure="export the graph again; shapes must follow from shapes",
            )
        shape = tuple(self._engine.get_tensor_shape(name))
        dimensions: list[Dimension] = []
        for axis, length in enumerate(shape):
            other = known.shape[axis] if known is not None and len(known.shape) == len(shape) else None
            dynamic = other if isinstance(other, str) else f"{name}_{axis}"
            dimensions.append(dynamic if length < 0 else int(length))
        return TensorSpec(name=name, dtype=_DTYPES[kind], shape=tuple(dimensions))


class EngineContext:
    """One engine's state for one run at a time."""

    def __init__(self, engine: Engine, context: Any, config: Any = None) -> None:
        self.engine = engine
        self._config = config  # TensorRT's; to live as long as the context
        self._context = context

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Fix the inputs' shapes.

        Args:
            shapes: of every input, by name.

        Returns:
            Shapes of the outputs, by name.

        Raises:
            BackendError: a shape is outside the profile, or an output's shape does not follow from the inputs'.
        """
        for tensor in self.engine.spec.inputs:
            self.engine.check_shape(tensor, shapes[tensor.name])
            if not self._context.set_input_shape(tensor.name, shapes[tensor.name]):
                raise self.engine.error(
                    f"shape {shapes[tensor.name]} of {tensor.name} was refused",
                    cure="build it again with `ebseg build`",
                )
        try:
            unknown = self._context.infer_shapes()
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise self.engine.error(f"no shapes follow from {dict(shapes)}: {text}", cure="export it again") from error
        outputs = {
            each.name: tuple(int(length) for length in self._context.get_tensor_shape(each.name))
            for each in self.engine.spec.outputs
        }
        vague = [*unknown, *(name for name, shape in outputs.items() if min(shape, default=0) < 0)]
        if vague:
            raise self.engine.error(
                f"the shape of {vague[0]} does not follow from the inputs' shapes", cure="export the graph again"
            )
        return outputs

    def largest_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors at the profile's maximum; what buffers must hold. Leaves these shapes set."""
        inputs = {each.name: self.engine.limits(each.name)[1] for each in self.engine.spec.inputs}
        return {**inputs, **self.set_shapes(inputs)}

    def bind(self, tensor: str, address: int) -> None:
        """Say where a tensor lies on the GPU; holds until it is said again."""
        if not self._context.set_tensor_address(tensor, address):
            raise self.engine.error(f"address of {tensor} was refused", cure="report it with `ebseg doctor`'s output")

    def enqueue(self, stream: int) -> None:
        """Put a run on a stream; all tensors are bound and all shapes set."""
        if not self._context.execute_async_v3(stream):
            raise self.engine.error(
                "the run could not be started", cure="check the engine with `ebseg verify --backend`, or build it again"
            )

    def capturable(self, stream: int) -> bool:
        """Whether a run may become part of a CUDA graph. TensorRT for RTX says so; with TensorRT, trying tells."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream))


def numpy_dtype(tensor: TensorSpec) -> np.dtype[Any]:
    """The numpy type of a tensor's elements."""
    return np.dtype(tensor.dtype)


def _option(dimension: Dimension, length: int, least: int, greatest: int) -> str:
    """How `ebseg build` is told to make room for a length of a dynamic dimension."""
    name, less = str(dimension), 0
    if name == "classes_and_background":
        name, less = "classes", 1
    return f"--{name} {min(least, length) - less}:{length - less}:{max(greatest, length) - less}"


def _log(trt: ModuleType) -> Any:
    """A TensorRT logger that keeps the last complaints, one line each."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]  # known when the module is
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: deque[str] = deque(maxlen=3)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.messages.append(" ".join(message.split())[:300])

    return Log()
