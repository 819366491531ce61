"""Insert Q/DQ pairs: the products a recipe names compute in INT8 or FP8, everything else as before.

A pair stands on both factors of a product and nowhere else, each activation with one pair whoever reads it, zero point
0. An engine that knows the pattern computes the product on the quantised numbers; one that does not (and ONNX Runtime
in a check) rounds the factors and multiplies them as floats, which gives the same but for the order of adding up.

Weights are stored quantised. INT8 has a scale per output channel; FP8 one per weight, which is TensorRT's common
ground and costs a floating-point type little.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..contract import FloatType, QuantisedType
from ..errors import CalibrationError, ExportError
from ..export.precision.recipes import GraphRecipe
from .quantize_attention import observed, rewrite_attention
from .quantize_products import Product, products
from .quantize_weights import ONNX, add_constant, along, channel_amax, quantised, scale_for
from .ranges import Range

QDQ_OPSET = 19
"""The first with FP8, and with scales in FP16."""


@dataclass(frozen=True, kw_only=True)
class KeptProduct:
    """A product that is not quantised."""

    node: str
    macs: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """What `insert_qdq` did to a graph."""

    to: QuantisedType
    nodes: tuple[str, ...]
    """Products between Q/DQ pairs, by name."""
    kept: tuple[KeptProduct, ...]
    macs: int
    """Multiply-adds of all products."""
    quantised_macs: int

    @property
    def share(self) -> float:
        """Share of the multiply-adds that is quantised, 0 to 1."""
        return self.quantised_macs / self.macs if self.macs else 0.0


ATTENTION = "attention: in the base type engines fuse it to one kernel, in INT8 they do not"


def reason_to_keep(product: Product, recipe: GraphRecipe) -> str | None:
    """Why a recipe leaves a product as it is; None if it is to be quantised."""
    found = next((keep for keep in recipe.keep if keep.matches(product.name)), None)
    if found is not None:
        return found.reason
    return ATTENTION if product.kind == "attention" and not recipe.attention else None


def activations_to_calibrate(model: ir.Model, recipe: GraphRecipe) -> list[str]:
    """Tensors whose ranges `insert_qdq` needs, in the graph's order."""
    if recipe.quantised is None:
        return []
    names = (
        value.name or ""
        for product in products(model)
        if reason_to_keep(product, recipe) is None
        for value in observed(product)
    )
    return list(dict.fromkeys(names))


def insert_qdq(
    model: ir.Model, recipe: GraphRecipe, ranges: Mapping[str, Range], *, only: Collection[str] | None = None
) -> Quantisation:
    """Put Q/DQ pairs around the products of an FP32 graph, in place; its floats stay FP32.

    Args:
        model: an exported graph, nodes named and shapes known.
        recipe: what to quantise to, what to keep; `base` decides only which numbers the scales may be.
        ranges: of every tensor that `activations_to_calibrate` names.
        only: names of the products to quantise, of those that the recipe does; all by default.

    Raises:
        CalibrationError: a range is missing or not finite.
        ExportError: the graph has Q/DQ pairs already.
    """
    assert recipe.quantised is not None
    refuse_quantised(model)
    everything = products(model)
    reasons = {product.name: reason_to_keep(product, recipe) for product in everything}
    if only is not None:
        reasons = {name: reason if name in only else reason or "not asked for" for name, reason in reasons.items()}
    chosen = [product for product in everything if reasons[product.name] is None]
    _check_ranges(chosen, ranges)
    ranges = rewrite_attention(model, chosen, ranges)
    writer = _PairWriter(model, recipe.quantised, recipe.base)
    for product in chosen:
        for index in product.activations:
            value = product.activation(index)
            rounded = writer.activation(value, ranges[value.name or ""].amax)
            product.node.replace_input_with(index, rounded)
            for user, place in list(value.uses()):
                if user.op_type == "ReduceSum":  # a softmax row's total: of what is multiplied, so that shares add to 1
                    user.replace_input_with(place, rounded)
        if product.weight is not None:
            product.node.replace_input_with(product.weight, writer.weight(product))
    writer.drop_unused()
    model.opset_imports[""] = max(QDQ_OPSET, model.opset_imports[""])
    return Quantisation(
        to=recipe.quantised,
        nodes=tuple(product.name for product in chosen),
        kept=tuple(
            KeptProduct(node=product.name, macs=product.macs, reason=reason)
            for product in everything
            if (reason := reasons[product.name]) is not None
        ),
        macs=sum(product.macs for product in everything),
        quantised_macs=sum(product.macs for product in chosen),
    )


def refuse_quantised(model: ir.Model) -> None:
    """Raises ExportError if a graph has Q/DQ pairs."""
    found = next((node for node in model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")), None)
    if found is not None:
        raise ExportError(
            f"graph {model.graph.name}: quantised already ({found.op_type} {found.name})",
            cure="start from the FP32 bundle",
        )


def _check_ranges(chosen: Sequence[Product], ranges: Mapping[str, Range]) -> None:
    for product in chosen:
        for value in observed(product):
            name = value.name or ""
            if name not in ranges:
                raise CalibrationError(
                    f"node {product.name}: no range of {name!r}, which it multiplies",
                    cure="calibrate the graph again: the ranges are another graph's, or another recipe's",
                )
            if not np.isfinite(ranges[name].amax):
                raise CalibrationError(
                    f"node {product.name}: range of {name!r} is {ranges[name].amax}", cure="calibrate the graph again"
                )


class _PairWriter:
    """Makes Q/DQ nodes; one pair per activation, one DQ per weight."""

    def __init__(self, model: ir.Model, to: QuantisedType, base: FloatType) -> None:
        self._graph = model.graph
        self._to = to
        self._base = base
        self._pairs: dict[str, ir.Value] = {}
        self._replaced: list[ir.Value] = []

    def activation(self, value: ir.Value, amax: float) -> ir.Value:
        """What comes out of a Q/DQ pair behind an activation."""
        name = value.name or ""
        if name not in self._pairs:
            scale = add_constant(self._graph, f"{name}.scale", scale_for(amax, self._to, self._base))
            zero = self._zero(())
            quantise = ir.node(
                "QuantizeLinear",
                [value, scale, zero],
                outputs=[_value(f"{name}.quantised", ONNX[self._to], value)],
                name=f"{name}/QuantizeLinear",
            )
            dequantise = ir.node(
                "DequantizeLinear",
                [quantise.outputs[0], scale, zero],
                outputs=[_value(f"{name}.dequantised", ir.DataType.FLOAT, value)],
                name=f"{name}/DequantizeLinear",
            )
            producer = value.producer()
            if producer is None:
                self._graph.insert_before(self._graph[0], [quantise, dequantise])
            else:
                self._graph.insert_after(producer, [quantise, dequantise])
            self._pairs[name] = dequantise.outputs[0]
        return self._pairs[name]

    def weight(self, product: Product) -> ir.Value:
        """What comes out of a DQ behind a product's weight, stored quantised."""
        assert product.weight is not None
        value = product.node.inputs[product.weight]
        assert value is not None
        name = value.name or ""
        if name not in self._pairs:
            self._pairs[name] = self._weight_pair(product, value, name)
            self._replaced.append(value)
        return self._pairs[name]

    def _weight_pair(self, product: Product, value: ir.Value, name: str) -> ir.Value:
        tensor = value.const_value
        assert tensor is not None
        weight = tensor.numpy()
        axis = product.weight_axis if self._to == "int8" else None
        amax = np.abs(weight).max() if axis is None else channel_amax(weight, axis)
        scale = scale_for(amax, self._to, self._base)
        steps = quantised(weight, scale if axis is None else along(scale, axis, weight.ndim), self._to)
        stored = add_constant(self._graph, f"{name}.{self._to}", steps)
        dequantise = ir.node(
            "DequantizeLinear",
            [stored, add_constant(self._graph, f"{name}.scale", scale), self._zero(scale.shape)],
            {} if axis is None else {"axis": axis},
            outputs=[_value(f"{name}.dequantised", ir.DataType.FLOAT, value)],
            name=f"{name}/DequantizeLinear",
        )
        self._graph.insert_before(product.node, dequantise)
        return dequantise.outputs[0]

    def drop_unused(self) -> None:
        """Remove the weights that are stored quantised now."""
        for value in self._replaced:
            if not value.uses() and value.name in self._graph.initializers:
                del self._graph.initializers[value.name]

    def _zero(self, shape: tuple[int, ...]) -> ir.Value:
        name = f"zero_point.{self._to}" + (f".{shape[0]}" if shape else "")
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        return add_constant(self._graph, name, quantised(np.zeros(shape, np.float32), 1.0, self._to))


def _value(name: str, dtype: ir.DataType, like: ir.Value) -> ir.Value:
    return ir.Value(name=name, shape=like.shape, type=ir.TensorType(dtype))
