"""What a graph multiplies: its matrix products and convolutions, what kind each is, and how much work.

Only products are quantised: everything else moves as many bytes as it computes numbers, and gains nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from ..errors import CalibrationError

ProductKind = Literal["linear", "convolution", "attention", "table"]
"""linear: activations times a weight matrix. convolution: activations with a kernel. attention: activations times
activations. table: activations times a batch of constant matrices, as SAM's relative positions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """One MatMul, Gemm or Conv."""

    node: ir.Node
    kind: ProductKind
    macs: int
    """Multiply-adds of one run."""
    activations: tuple[int, ...]
    """Which inputs are computed: one, or both factors of an attention product."""
    weight: int | None
    """Which input is the constant; None for attention."""
    weight_axis: int | None
    """Axis of the weight that counts output channels; None for attention and tables."""

    @property
    def name(self) -> str:
        """The node's name: its place in the model."""
        return self.node.name or ""

    def activation(self, index: int) -> ir.Value:
        """The value at one of `activations`."""
        value = self.node.inputs[index]
        assert value is not None
        return value


def products(model: ir.Model) -> list[Product]:
    """All products of a graph, in its order.

    Raises:
        CalibrationError: a shape is missing or dynamic.
    """
    return [_product(node) for node in model.graph if node.op_type in ("MatMul", "Gemm", "Conv")]


def _product(node: ir.Node) -> Product:
    constants = [i for i in (0, 1) if _is_constant(node, i)]
    out = _lengths(node, node.outputs[0])
    if node.op_type == "Conv":
        kernel = _lengths(node, node.inputs[1])
        return Product(
            node=node,
            kind="convolution",
            macs=math.prod(out) * math.prod(kernel[1:]),
            activations=(0,),
            weight=1,
            weight_axis=0,
        )
    transposed = [bool(node.attributes.get_int(name, 0)) if node.op_type == "Gemm" else False for name in _TRANSPOSED]
    first = _lengths(node, node.inputs[0])
    inner = first[-2] if transposed[0] else first[-1]
    macs = math.prod(out) * inner
    if not constants:
        return Product(node=node, kind="attention", macs=macs, activations=(0, 1), weight=None, weight_axis=None)
    weight = constants[-1]
    activations = tuple(i for i in (0, 1) if i != weight)
    if weight == 1 and len(_lengths(node, node.inputs[1])) == 2:
        axis = 0 if transposed[1] else 1
        return Product(node=node, kind="linear", macs=macs, activations=activations, weight=weight, weight_axis=axis)
    return Product(node=node, kind="table", macs=macs, activations=activations, weight=weight, weight_axis=None)


_TRANSPOSED = ("transA", "transB")


def _is_constant(node: ir.Node, index: int) -> bool:
    value = node.inputs[index]
    return value is not None and value.const_value is not None


def _lengths(node: ir.Node, value: ir.Value | None) -> list[int]:
    shape = None if value is None else value.shape
    if shape is None or not all(isinstance(length, int) for length in shape):
        raise CalibrationError(
            f"node {node.name}: shape {shape} of {value and value.name} is not fixed",
            cure="quantise graphs of a fixed canvas",
        )
    return [int(length) for length in shape]
