"""What ONNX says of an operator's types: which of its tensors share the type it computes in.

Nearly all operators of the model's graphs compute in the type of their float inputs and give it back. The exceptions
stand here.
"""

from __future__ import annotations

import onnx_ir as ir

MOVES = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators that give back values they were given: as exact in one type as in another."""

SELECTS = frozenset({"Clip", "Max", "MaxPool", "Min", "Neg", "ReduceMax", "ReduceMin", "Relu", "Where"})
"""Operators whose results are values that they were given, or constants: nothing is rounded either."""

_ALWAYS_FP32 = {("Resize", 2)}
"""(operator, input): scales of a resize are FP32 whatever it resizes."""

_INTEGERS_WIDER_THAN_A_BYTE = frozenset(
    {ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32, ir.DataType.UINT32, ir.DataType.INT64}
)


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is FP32 before lowering."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def computes(node: ir.Node) -> bool:
    """Whether FP32 tensors go in or come out."""
    return any(is_float(value) for value in (*node.inputs, *node.outputs))


def decides(node: ir.Node) -> bool:
    """Whether floats go in and none comes out: comparisons, ArgMax, casts to whole numbers; Q/DQ pairs do not."""
    return (
        node.op_type != "QuantizeLinear"
        and any(is_float(value) for value in node.inputs)
        and not any(is_float(value) for value in node.outputs)
    )


def follows(node: ir.Node, index: int) -> bool:
    """Whether a float input has to have the type the node computes in."""
    return (node.op_type, index) not in _ALWAYS_FP32 and node.op_type != "Cast"


def counts(node: ir.Node) -> bool:
    """Whether a node makes floats of whole numbers beyond a byte: FP16 is exact up to 2,048, BF16 up to 256."""
    return (
        node.op_type == "Cast"
        and node.inputs[0] is not None
        and node.inputs[0].dtype in _INTEGERS_WIDER_THAN_A_BYTE
        and is_float(node.outputs[0])
    )
