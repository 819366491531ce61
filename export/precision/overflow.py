"""Which node of a half-precision graph overflows first."""

from __future__ import annotations

import onnx_ir as ir

from .operators import MOVES

PREFIX = "largest."


def watch_largest(model: ir.Model) -> dict[str, str]:
    """Give an emulated graph one more output per computed tensor: its largest |value|, a scalar.

    Args:
        model: emulated; changed in place.

    Returns:
        Output name -> node whose result it watches, in the order in which they are computed.
    """
    graph = model.graph
    watched: dict[str, str] = {}
    for node in list(graph):
        value = node.outputs[0]
        if value.dtype != ir.DataType.FLOAT or node.op_type in MOVES or node.op_type == "Cast":
            continue
        # What the node gives is rounded behind it; an overflow shows there.
        rounded = _widened(value)
        name = f"{PREFIX}{len(watched)}"
        size = ir.Node("", "Abs", [rounded], outputs=[_scalar(f"{name}.sizes")], name=f"{name}/Abs")
        most = ir.Node(
            "",
            "ReduceMax",
            [size.outputs[0]],
            [ir.AttrInt64("keepdims", 0)],
            outputs=[_scalar(name)],
            name=f"{name}/ReduceMax",
        )
        most.outputs[0].shape = ir.Shape([])
        graph.extend([size, most])
        graph.outputs.append(most.outputs[0])
        watched[name] = node.name or ""
    return watched


def _widened(value: ir.Value) -> ir.Value:
    """The value as its readers get it: behind the two casts that round it, if it is rounded."""
    for _ in range(2):
        casts = [use.node for use in value.uses() if use.node.op_type == "Cast"]
        if len(casts) != 1 or not (casts[0].name or "").startswith("emulation/"):
            return value
        value = casts[0].outputs[0]
    return value


def _scalar(name: str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
