"""The same graph in FP32 arithmetic, every tensor rounded as the half-precision graph would round it.

ONNX Runtime's CPU kernels compute nearly all of an FP16 graph in FP32 and keep FP32 between the nodes, and it has no
BF16 kernels at all. A comparison there would show the rounding of the weights and nothing else: no overflow, no lost
digits. The emulated graph rounds the result of every node that computes in half precision, as a GPU does that
accumulates in FP32 and fuses nothing. It is slower than FP32 and is for measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from ...contract import ComputeRecord
from .float_types import HALF_TYPES
from .operators import MOVES, SELECTS

_EXACT = MOVES | SELECTS
"""Nothing to round: what comes out went in, or is a constant that was rounded already."""


def emulate(model: ir.Model) -> int:
    """Turn a lowered graph into its emulated form, in place; returns how many tensors are rounded on their way.

    Constants stay stored in half precision and are widened when the graph is loaded.
    """
    graph = model.graph
    first = graph[0]
    for value in list(graph.initializers.values()):
        if value.dtype in HALF_TYPES:
            widened = _cast(value, ir.DataType.FLOAT, f"{value.name}.widened")
            graph.insert_before(first, widened)
            value.replace_all_uses_with(widened.outputs[0])
            widened.replace_input_with(0, value)
    roundings = 0
    for node in list(graph):
        halves = [value for value in node.outputs if value.dtype in HALF_TYPES]
        narrows = node.op_type == "Cast" and halves
        for value in halves:
            half = value.dtype
            assert half is not None
            if not narrows:
                value.type = ir.TensorType(ir.DataType.FLOAT)
            if node.op_type in _EXACT:
                continue
            roundings += 1
            _round(graph, node, value, half, narrowed=bool(narrows))
    return roundings


def rounds_little(compute: ComputeRecord) -> bool:
    """Whether ONNX Runtime shows little of a graph's rounding on a CPU, or cannot run it: its emulated form does."""
    return compute.base != "fp32" and not compute.emulated


@contextmanager
def emulated_beside(file: Path, change: Callable[[ir.Model], None] = lambda model: None) -> Iterator[Path]:
    """A half-precision graph's emulated form as a file beside it, where its weights are; gone when the block ends.

    Args:
        file: the half-precision graph.
        change: what else is done to the emulated graph.
    """
    emulated = file.with_name(f"{file.name}.emulated")
    try:
        model = ir.load(file)
        emulate(model)
        change(model)
        ir.save(model, emulated)
        yield emulated
    finally:
        emulated.unlink(missing_ok=True)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, half: ir.DataType, *, narrowed: bool) -> None:
    """Let everyone who reads `value` read it rounded to `half` and widened again."""
    there = None if narrowed else _cast(value, half, f"{value.name}.rounded")
    back = _cast(value if there is None else there.outputs[0], ir.DataType.FLOAT, f"{value.name}.widened")
    value.replace_all_uses_with(back.outputs[0])
    (back if there is None else there).replace_input_with(0, value)
    graph.insert_after(node, [back] if there is None else [there, back])


def _cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(to))
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", to.value)], outputs=[output], name=f"emulation/{name}")
