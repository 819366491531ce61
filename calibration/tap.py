"""Read a graph's inner tensors: ONNX Runtime gives whatever a graph names as its output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from ..errors import CalibrationError
from ..runtime.backends.onnxruntime_backend import load_onnxruntime, one_line

if TYPE_CHECKING:
    from typing import TypeAlias

Array = npt.NDArray[Any]
Model: TypeAlias = "Path | onnx.ModelProto"

OLDEST_ONNXRUNTIME = (1, 21)
"""The first that looks for weights in a given folder when the graph itself comes from memory."""

FLOATS = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2}
"""Element type of an activation -> its bytes."""


class GraphTap:
    """A graph whose inner tensors can be read.

    Args:
        model: an .onnx file, or a model whose weights are inside it.
        name: what to call the graph in errors.

    Raises:
        CalibrationError: the file cannot be read.
    """

    def __init__(self, model: Model, *, name: str) -> None:
        self.name = name
        self.folder = model.parent if isinstance(model, Path) else None
        self._model = self._load(model)
        graph = self._model.graph
        self._producers = {output: node for node in graph.node for output in node.output}
        self.inputs = tuple(value.name for value in graph.input)
        self.weights = frozenset(weight.name for weight in graph.initializer)
        self._types = self._tensor_types()

    def _load(self, model: Model) -> onnx.ModelProto:
        if not isinstance(model, Path):
            return model
        try:
            return onnx.load(model, load_external_data=False)
        except Exception as error:  # protobuf's own errors share no base with OSError
            raise CalibrationError(
                f"graph {self.name}: cannot read {model}: {one_line(error)}", cure="check it with `ebseg verify`"
            ) from error

    def _tensor_types(self) -> dict[str, onnx.TypeProto]:
        graph = self._model.graph
        known = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
        if any(output and output not in known for output in self._producers):
            inferred = onnx.shape_inference.infer_shapes(self._model).graph
            known = {**{value.name: value.type for value in inferred.value_info}, **known}
        return known

    def producer(self, tensor: str) -> str:
        """The name of the node that computes a tensor; for a graph's input, "the graph's input"."""
        node = self._producers.get(tensor)
        return "the graph's input" if node is None else f"node {node.name or node.op_type!r}"

    def check(self, tensors: Sequence[str]) -> None:
        """Make sure that all of them are activations of this graph.

        Raises:
            CalibrationError: names one that is not in the graph, is a weight, or holds no floating-point numbers.
        """
        for tensor in tensors:
            if tensor in self.weights:
                raise CalibrationError(f"graph {self.name}: {tensor!r} is a weight", cure="name activations only")
            if tensor not in self._producers and tensor not in self.inputs:
                raise CalibrationError(
                    f"graph {self.name}: no tensor {tensor!r} in it", cure="take names from this very graph"
                )
            kind = self._types[tensor].tensor_type.elem_type if tensor in self._types else 0
            if kind and kind not in FLOATS:
                raise CalibrationError(
                    f"graph {self.name}: {tensor!r} is {onnx.TensorProto.DataType.Name(kind)}, wanted FLOAT or FLOAT16",
                    cure="name floating-point activations only",
                )

    def activations(self) -> list[str]:
        """Every tensor that `check` would pass, in the graph's order."""
        return [
            name
            for name in (*self.inputs, *self._producers)
            if name in self._types and self._types[name].tensor_type.elem_type in FLOATS
        ]

    def nbytes(self, tensor: str) -> float:
        """Memory a tensor takes in one run; infinite where the graph does not fix its shape."""
        if tensor not in self._types:
            return math.inf
        kind = self._types[tensor].tensor_type
        lengths = [dimension.dim_value for dimension in kind.shape.dim]
        return (
            math.prod(lengths) * FLOATS.get(kind.elem_type, 4) if kind.HasField("shape") and all(lengths) else math.inf
        )

    def chunks(self, tensors: Sequence[str], budget_bytes: int) -> list[list[str]]:
        """Split tensors, in the graph's order, so that those of a chunk fit in the budget together."""
        place = {name: index for index, name in enumerate([*self.inputs, *self._producers])}
        chunks: list[list[str]] = []
        room = 0.0
        for tensor in sorted(tensors, key=place.__getitem__):
            size = self.nbytes(tensor)
            if not chunks or size > room:
                chunks.append([])
                room = budget_bytes
            chunks[-1].append(tensor)
            room -= size
        return chunks

    def open(self, tensors: Sequence[str], *, threads: int | None = None) -> OpenTap:
        """Make ready to read these tensors. Nodes that none of them needs are not run.

        Raises:
            CalibrationError: ONNX Runtime refuses the graph.
        """
        inner = [tensor for tensor in tensors if tensor not in self.inputs]
        if not inner:
            return OpenTap(tap=self, tensors=tuple(tensors), session=None)
        tapped = onnx.ModelProto()
        tapped.CopyFrom(self._model)
        del tapped.graph.output[:]
        tapped.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in inner)
        ort = load_onnxruntime()
        if tuple(int(part) for part in ort.__version__.split(".")[:2]) < OLDEST_ONNXRUNTIME:
            raise CalibrationError(
                f"onnxruntime {ort.__version__}: calibration needs 1.21", cure="pip install --upgrade onnxruntime"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_mem_pattern = False
        if threads is not None:
            options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self.folder))
        try:
            session = ort.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise CalibrationError(
                f"graph {self.name}: onnxruntime refused it: {one_line(error)}", cure="check it with `ebseg verify`"
            ) from error
        return OpenTap(tap=self, tensors=tuple(tensors), session=session)


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenTap:
    """Some tensors of a graph, ready to be read."""

    tap: GraphTap
    tensors: tuple[str, ...]
    session: Any
    """ONNX Runtime's; None when all tensors are inputs of the graph."""

    def read(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once and give the tensors, by name.

        Args:
            feed: all inputs of the graph.

        Raises:
            CalibrationError: ONNX Runtime fails.
        """
        given = {tensor: np.asarray(feed[tensor]) for tensor in self.tensors if tensor in self.tap.inputs}
        if self.session is None:
            return given
        inner = [tensor for tensor in self.tensors if tensor not in given]
        wanted = {each.name for each in self.session.get_inputs()}
        try:
            outputs = self.session.run(inner, {name: feed[name] for name in wanted})
        except Exception as error:
            raise CalibrationError(
                f"graph {self.tap.name}: onnxruntime failed: {one_line(error)}",
                cure="check memory with `ebseg doctor` and the bundle with `ebseg verify`",
            ) from error
        return {**given, **dict(zip(inner, outputs, strict=True))}
