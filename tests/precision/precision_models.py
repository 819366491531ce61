"""Small ONNX graphs to lower, run and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray],
    *,
    input_types: Mapping[str, int] | None = None,
    opset: int = 18,
) -> ir.Model:
    """A checked model with the types of its inner values, as the exporter writes them."""
    types = input_types or {}
    proto = helper.make_model(
        helper.make_graph(
            list(nodes),
            "test",
            [helper.make_tensor_value_info(name, types.get(name, FLOAT), shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
            [numpy_helper.from_array(values, name) for name, values in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=9,
    )
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), list(outputs), name=name, **attributes)


def run(model: ir.Model, inputs: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes; the model is checked by onnx first."""
    path = folder / "graph.onnx"
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def kinds(model: ir.Model) -> list[str]:
    return [each.op_type for each in model.graph]


def casts_in_a_row(model: ir.Model) -> list[str]:
    """Casts of casts of a float: there is always one too many."""
    floats = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    return [
        each.name or ""
        for each in model.graph
        if each.op_type == "Cast"
        and each.inputs[0] is not None
        and (before := each.inputs[0].producer()) is not None
        and before.op_type == "Cast"
        and before.inputs[0] is not None
        and before.inputs[0].dtype in floats
    ]


def type_of(model: ir.Model, name: str) -> ir.DataType | None:
    """Type of a node's first output."""
    return next(each.outputs[0].dtype for each in model.graph if each.name == name)
