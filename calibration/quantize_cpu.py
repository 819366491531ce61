"""INT8 for ONNX Runtime's own kernels on x86 (AVX512-VNNI, AVX-VNNI) and ARM: no ranges, no pictures.

ONNX Runtime runs Q/DQ pairs with zero point 0 slowly on a CPU: its fast kernel multiplies uint8 activations with int8
weights. So here every linear layer becomes one `com.microsoft.DynamicQuantizeMatMul`, which finds the range of its
activations as they come (asymmetric, uint8), multiplies in INT8, and scales and adds the bias in the same pass. On
1600x768 by 768x2304 it took a third of the FP32 product's time; the same product between Q/DQ pairs took four times it.

Attention scores (queries times keys) are multiplied in INT8 too, in strips that stay in the cache with the softmax that
follows. The product with the values stays FP32: uint8 has no steps for the many small weights of a softmax's row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ..export.precision.recipes import GraphRecipe
from .quantize import KeptProduct, Quantisation, reason_to_keep, refuse_quantised
from .quantize_attention import riding_positions
from .quantize_products import Product, ProductKind, products
from .quantize_weights import Array, add_constant, along, channel_amax, quantised, scale_for
from .quantize_windows import only_user, partition_first

DOMAIN = "com.microsoft"

STRIP_BYTES = 16 << 20
"""Attention scores made at a time. 12 heads of 1600x1600 tokens are 123 MB; in strips they took half the time."""


_NOT_HERE: Mapping[ProductKind, str] = {
    "linear": "Gemm: the exporter writes MatMul, and ONNX Runtime has no dynamic INT8 Gemm",
    "convolution": "convolution: ONNX Runtime quantises none dynamically in one kernel",
    "table": "constant table: small, and batched",
}
"""Kinds of products that have no operator here."""


def quantise_for_cpu(model: ir.Model, recipe: GraphRecipe) -> Quantisation:
    """Turn linear layers and attention scores of an FP32 graph into INT8, in place.

    Raises:
        CalibrationError: a shape is missing or dynamic.
        ExportError: the graph is quantised already.
    """
    refuse_quantised(model)
    partition_first(model)
    everything = products(model)
    rewriter = _Rewriter(model)
    done: list[Product] = []
    kept: list[KeptProduct] = []
    for product in everything:
        reason = reason_to_keep(product, recipe) or rewriter.rewrite(product)
        if reason is None:
            done.append(product)
        else:
            kept.append(KeptProduct(node=product.name, macs=product.macs, reason=reason))
    rewriter.finish()
    model.opset_imports[DOMAIN] = 1
    return Quantisation(
        to="int8",
        nodes=tuple(product.name for product in done),
        kept=tuple(kept),
        macs=sum(product.macs for product in everything),
        quantised_macs=sum(product.macs for product in done),
    )


class _Rewriter:
    """Replaces products, one at a time."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._weights: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._replaced: list[ir.Value] = []

    def rewrite(self, product: Product) -> str | None:
        """Make a product compute in INT8; returns why not, if it stays."""
        if product.kind == "linear" and product.node.op_type == "MatMul":
            self._linear(product)
            return None
        if product.kind == "attention":
            softmax = only_user(product.node)
            if softmax is None or softmax.op_type != "Softmax":
                return "attention times values: a row of softmax has more small weights than INT8 has steps"
            mixing = only_user(softmax)
            if mixing is None or mixing.op_type != "MatMul":
                return "attention that other nodes read too"
            self._scores(product, softmax, mixing)
            return None
        return _NOT_HERE[product.kind]

    def finish(self) -> None:
        """Remove the weights that are stored in INT8 now, and bring the nodes into order."""
        for value in self._replaced:
            if not value.uses() and value.name in self._graph.initializers:
                del self._graph.initializers[value.name]
        self._graph.sort()

    def _linear(self, product: Product) -> None:
        node = product.node
        last, bias = node, None
        addition = only_user(node)
        if addition is not None and addition.op_type == "Add":
            other = next((value for value in addition.inputs if value is not node.outputs[0]), None)
            if other is not None and other.const_value is not None and len(other.const_value.shape) == 1:
                last, bias = addition, other
        replacement = ir.node(
            "DynamicQuantizeMatMul",
            [node.inputs[0], *self._weight(product), *([bias] if bias else [])],
            domain=DOMAIN,
            outputs=[_like(last.outputs[0], "int8")],
            name=product.name,
        )
        self._graph.insert_after(last, replacement)
        self._take_over([node, last] if last is not node else [node], replacement.outputs[0])

    def _weight(self, product: Product) -> tuple[ir.Value, ir.Value, ir.Value]:
        value = product.node.inputs[1]
        assert value is not None
        assert value.const_value is not None
        assert product.weight_axis is not None
        name = value.name or ""
        if name not in self._weights:
            weight = value.const_value.numpy()
            scale = scale_for(channel_amax(weight, product.weight_axis), "int8", "fp32")
            steps = quantised(weight, along(scale, product.weight_axis, weight.ndim), "int8")
            self._weights[name] = (
                add_constant(self._graph, f"{name}.int8", steps),
                add_constant(self._graph, f"{name}.scale", scale),
                add_constant(self._graph, f"{name}.zero", np.zeros(len(scale), np.int8)),
            )
            self._replaced.append(value)
        return self._weights[name]

    def _scores(self, product: Product, softmax: ir.Node, mixing: ir.Node) -> None:
        """softmax(q kᵀ) v with q in uint8 and k in int8, both of the range they happen to have."""
        v = mixing.inputs[1]
        assert v is not None
        at = softmax
        place = product.name
        q, k_steps, k_scale = self._factors(product, at)
        q_steps, q_scale, q_zero = self._dynamic(q, place, at)
        outputs = []
        for i, strip in enumerate(self._strips(q_steps, product, place, at)):
            scores = self._add(
                "MatMulIntegerToFloat",
                [strip, k_steps, q_scale, k_scale, q_zero, self._zero()],
                f"{place}/scores_{i}",
                at,
                domain=DOMAIN,
            )
            weights = self._add("Softmax", [scores], f"{place}/softmax_{i}", at, attributes={"axis": -1})
            outputs.append(self._add("MatMul", [weights, v], f"{mixing.name}_{i}" if i else mixing.name, at))
        result = outputs[0]
        if len(outputs) > 1:
            result = self._add("Concat", outputs, f"{place}/strips", at, attributes={"axis": -2})
        result.shape = mixing.outputs[0].shape
        self._take_over([product.node, softmax, mixing], result)

    def _strips(self, q: ir.Value, product: Product, place: str, at: ir.Node) -> Sequence[ir.Value]:
        shape = [int(length) for length in product.node.outputs[0].shape or ()]
        count = min(math.ceil(math.prod(shape) * 4 / STRIP_BYTES), shape[-2])
        if count == 1:
            return [q]
        rows = -(-shape[-2] // count)
        lengths = [min(rows, shape[-2] - first) for first in range(0, shape[-2], rows)]
        split = ir.node(
            "Split",
            [q, add_constant(self._graph, f"{place}.strips", np.array(lengths, np.int64))],
            {"axis": len(shape) - 2},
            outputs=[
                ir.Value(name=f"{place}/q_{i}", type=ir.TensorType(ir.DataType.UINT8)) for i in range(len(lengths))
            ],
            name=f"{place}/Split",
        )
        self._graph.insert_before(at, split)
        return list(split.outputs)

    def _factors(self, product: Product, at: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """q in FP32, k in INT8 and k's step.

        Relative positions ride in SAM's scores as [q, R] · [k, codes] with codes of 0 and 1. Codes become 0 and 127,
        which are exact, and R is divided by what a code is worth then: 127 steps of k.
        """
        place = product.name
        q, k = product.activation(0), product.activation(1)
        parts = riding_positions(product)
        if parts is None:
            step, _ = self._step_of(k, place, at)
            return q, self._in_steps(k, step, place, at), step
        step, amax = self._step_of(parts.k, place, at)
        k_steps = self._in_steps(parts.k, step, place, at)
        assert parts.codes.const_value is not None
        codes = self._once(f"{parts.codes.name}.int8", (127 * parts.codes.const_value.numpy()).astype(np.int8))
        k_steps = self._add(
            "Concat", [k_steps, codes], f"{place}/k_codes", at, ir.DataType.INT8, attributes={"axis": parts.k_axis}
        )
        positions = self._add("Div", [parts.positions, amax], f"{place}/positions", at)
        q = self._add("Concat", [parts.q, positions], f"{place}/q_positions", at, attributes={"axis": parts.q_axis})
        return q, k_steps, step

    def _in_steps(self, k: ir.Value, step: ir.Value, place: str, at: ir.Node) -> ir.Value:
        """k in INT8; a transposition comes after, where it moves a quarter of the bytes."""
        turn = k.producer()
        source = turn.inputs[0] if turn is not None and turn.op_type == "Transpose" else None
        steps = self._add("QuantizeLinear", [source or k, step, self._zero()], f"{place}/k", at, ir.DataType.INT8)
        if source is None or turn is None:
            return steps
        turned = ir.node(
            "Transpose",
            [steps],
            turn.attributes,
            outputs=[ir.Value(name=f"{place}/k_turned", shape=k.shape, type=ir.TensorType(ir.DataType.INT8))],
            name=f"{place}/Transpose",
        )
        self._graph.insert_before(at, turned)
        return turned.outputs[0]

    def _step_of(self, value: ir.Value, place: str, at: ir.Node) -> tuple[ir.Value, ir.Value]:
        """max |value| / 127 and max |value|, as scalars."""
        turn = value.producer()
        if turn is not None and turn.op_type == "Transpose" and turn.inputs[0] is not None:
            value = turn.inputs[0]  # the same numbers
        high = self._add("ReduceMax", [value], f"{place}/high", at, attributes={"keepdims": 0})
        low = self._add("ReduceMin", [value], f"{place}/low", at, attributes={"keepdims": 0})
        minus_low = self._add("Neg", [low], f"{place}/minus_low", at)
        amax = self._add("Max", [high, minus_low, self._scalar("int8.least", 1e-6)], f"{place}/amax", at)
        return self._add("Div", [amax, self._scalar("int8.largest", 127.0)], f"{place}/step", at), amax

    def _dynamic(self, value: ir.Value, place: str, at: ir.Node) -> tuple[ir.Value, ...]:
        node = ir.node(
            "DynamicQuantizeLinear",
            [value],
            outputs=[
                ir.Value(name=f"{place}/q", shape=value.shape, type=ir.TensorType(ir.DataType.UINT8)),
                ir.Value(name=f"{place}/q_scale", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT)),
                ir.Value(name=f"{place}/q_zero", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.UINT8)),
            ],
            name=f"{place}/DynamicQuantizeLinear",
        )
        self._graph.insert_before(at, node)
        return tuple(node.outputs)

    def _add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        before: ir.Node,
        dtype: ir.DataType = ir.DataType.FLOAT,
        *,
        attributes: dict[str, int] | None = None,
        domain: str = "",
    ) -> ir.Value:
        node = ir.node(
            op_type,
            inputs,
            attributes,
            domain=domain,
            outputs=[ir.Value(name=f"{name}.out", type=ir.TensorType(dtype))],
            name=name,
        )
        self._graph.insert_before(before, node)
        return node.outputs[0]

    def _take_over(self, nodes: Sequence[ir.Node], result: ir.Value) -> None:
        """Let `result` be what the last of some nodes gave, and remove them."""
        old = nodes[-1].outputs[0]
        name = old.name
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        before = [value.producer() for node in nodes for value in node.inputs if value is not None]
        self._graph.remove(list(nodes), safe=True)
        result.name = name
        for node in before:
            self._remove_unread(node)

    def _remove_unread(self, node: ir.Node | None) -> None:
        """Remove a concatenation or a transposition that nobody reads any more, and what led to it."""
        if node is None or node.graph is not self._graph or node.op_type not in ("Concat", "Transpose"):
            return
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            return
        before = [value.producer() for value in node.inputs if value is not None]
        self._graph.remove(node, safe=True)
        for each in before:
            self._remove_unread(each)

    def _zero(self) -> ir.Value:
        return self._once("int8.zero", np.array(0, np.int8))

    def _scalar(self, name: str, number: float) -> ir.Value:
        return self._once(name, np.array(number, np.float32))

    def _once(self, name: str, values: Array) -> ir.Value:
        return self._graph.initializers.get(name) or add_constant(self._graph, name, values)


def _like(value: ir.Value, suffix: str) -> ir.Value:
    return ir.Value(name=f"{value.name}.{suffix}", shape=value.shape, type=value.type)
