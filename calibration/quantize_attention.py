"""Attention in a form that survives quantisation: exact rewrites, before Q/DQ pairs are inserted.

Two things make attention hard to quantise with one scale per tensor, and both can be written otherwise:

Softmax rows. Over 1,600 tokens most weights are near 1/1600 while some row somewhere has one near 1, and INT8 has 127
steps. But softmax(s) v = (exp(s − max s) v) / Σ exp(s − max s), where every row's largest number is 1: each row gets
the steps that fit it, and a row's sum is taken over the rounded numbers, so that they still add up to 1.

Relative positions. In SAM they ride in the scores as [q, R] · [k, codes] with codes of 0 and 1, and a scale made for k
has few steps for a 1. As [q, R/c] · [k, c·codes], c the largest |k|, a code is 127 steps exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .quantize_products import Product
from .quantize_weights import add_constant
from .ranges import Range

UNIT = Range(low=0.0, high=1.0)
"""Of exp(s − max s)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RidingPositions:
    """The parts of the scores [q, positions] · [k, codes]."""

    q: ir.Value
    positions: ir.Value
    q_axis: int
    k: ir.Value
    codes: ir.Value
    """A constant of zeros and ones."""
    k_axis: int


def riding_positions(product: Product) -> RidingPositions | None:
    """Take a product of two concatenations apart; None if it is not of that form."""
    if product.kind != "attention":
        return None
    first, second = (product.activation(index).producer() for index in (0, 1))
    if first is None or second is None or (first.op_type, second.op_type) != ("Concat", "Concat"):
        return None
    if len(first.inputs) != 2 or len(second.inputs) != 2:
        return None
    q, positions = first.inputs
    k, codes = second.inputs
    if q is None or positions is None or k is None or codes is None or codes.const_value is None:
        return None
    if not np.isin(codes.const_value.numpy(), (0, 1)).all():
        return None
    return RidingPositions(
        q=q,
        positions=positions,
        q_axis=first.attributes.get_int("axis"),
        k=k,
        codes=codes,
        k_axis=second.attributes.get_int("axis"),
    )


def softmax_before(product: Product) -> ir.Node | None:
    """The softmax whose rows a product mixes values with, if nobody else reads it and it runs along the last axis."""
    node = product.activation(0).producer() if product.kind == "attention" else None
    if node is None or node.op_type != "Softmax" or len(node.outputs[0].uses()) != 1:
        return None
    rank = len(node.outputs[0].shape or ())
    return node if node.attributes.get_int("axis", -1) in (-1, rank - 1) else None


def observed(product: Product) -> Iterator[ir.Value]:
    """The activations of a product whose ranges have to be known."""
    parts = riding_positions(product)
    if parts is not None:
        yield from (parts.q, parts.positions, parts.k)
        return
    for index in product.activations:
        if index != 0 or softmax_before(product) is None:
            yield product.activation(index)


def rewrite_attention(model: ir.Model, products: Sequence[Product], ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Rewrite the attention among some products, in place.

    Args:
        model: the FP32 graph they are in.
        products: those that will be quantised.
        ranges: of every activation that `observed` gives.

    Returns:
        The ranges of the activations that the products have now, by name.
    """
    found = dict(ranges)
    for product in products:
        parts = riding_positions(product)
        if parts is not None:
            _worth_of_codes(model.graph, product, parts, found)
        softmax = softmax_before(product)
        if softmax is not None:
            _divide_behind(model.graph, product, softmax)
            found[product.activation(0).name or ""] = UNIT
    return found


def _worth_of_codes(graph: ir.Graph, product: Product, parts: RidingPositions, ranges: dict[str, Range]) -> None:
    worth = ranges[parts.k.name or ""].amax or 1.0
    place = product.name
    factors = {"worth": worth, "share": 1 / worth}
    constants = {
        name: add_constant(graph, f"{place}.{name}", np.array(each, np.float32)) for name, each in factors.items()
    }
    codes = _node("Mul", [parts.codes, constants["worth"]], f"{place}/codes", parts.codes.shape)
    positions = _node("Mul", [parts.positions, constants["share"]], f"{place}/positions", parts.positions.shape)
    first, second = (product.activation(index) for index in (0, 1))
    q = _node("Concat", [parts.q, positions.outputs[0]], f"{place}/q", first.shape, axis=parts.q_axis)
    k = _node("Concat", [parts.k, codes.outputs[0]], f"{place}/k", second.shape, axis=parts.k_axis)
    graph.insert_before(product.node, [codes, positions, q, k])
    product.node.replace_input_with(0, q.outputs[0])
    product.node.replace_input_with(1, k.outputs[0])
    for value in (first, second):
        producer = value.producer()
        if producer is not None and not value.uses() and not value.is_graph_output():
            graph.remove(producer, safe=True)
    q_amax = max(ranges[parts.q.name or ""].amax, ranges[parts.positions.name or ""].amax / worth)
    ranges[q.outputs[0].name or ""] = Range(low=-q_amax, high=q_amax)
    ranges[k.outputs[0].name or ""] = Range(low=-worth, high=worth)


def _divide_behind(graph: ir.Graph, product: Product, softmax: ir.Node) -> None:
    scores = softmax.inputs[0]
    assert scores is not None
    assert scores.shape is not None
    place = softmax.name or "softmax"
    axes = add_constant(graph, f"{place}.axes", np.array([-1], np.int64))
    row = ir.Shape([*list(scores.shape)[:-1], 1])
    largest = _node("ReduceMax", [scores, axes], f"{place}/largest", row, keepdims=1)
    below = _node("Sub", [scores, largest.outputs[0]], f"{place}/below", scores.shape)
    weights = _node("Exp", [below.outputs[0]], f"{place}/weights", scores.shape)
    graph.insert_before(softmax, [largest, below, weights])
    product.node.replace_input_with(0, weights.outputs[0])
    graph.remove(softmax, safe=True)
    mixed = product.node.outputs[0]
    total = _node("ReduceSum", [weights.outputs[0], axes], f"{place}/total", row, keepdims=1)
    shares = _node("Div", [mixed, total.outputs[0]], f"{place}/shares", mixed.shape)
    graph.insert_after(product.node, [total, shares])
    mixed.replace_all_uses_with(shares.outputs[0], replace_graph_outputs=True)
    shares.replace_input_with(0, mixed)


def _node(op_type: str, inputs: Sequence[ir.Value], name: str, shape: ir.Shape | None, **attributes: int) -> ir.Node:
    output = ir.Value(name=f"{name}.out", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    return ir.node(op_type, inputs, attributes, outputs=[output], name=name)
