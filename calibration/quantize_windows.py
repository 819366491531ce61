"""Move SAM's partition into windows in front of the linear layer that it follows: a third of the bytes to move.

The exported graph multiplies first and partitions the three times wider result, so that a padded token costs no
product: LayerNorm, MatMul, Pad, Reshape, Transpose, Reshape, Add. In INT8 a tenth more product is cheaper than three
times the copying, and the bias becomes part of the product. The numbers stay: the product of a zero is a zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .quantize_weights import add_constant

_MOVERS = ("Pad", "Reshape", "Transpose")


def partition_first(model: ir.Model) -> int:
    """Rewrite every such linear layer, in place; returns how many there were."""
    return sum(_rewrite(model.graph, node) for node in list(model.graph) if node.op_type == "MatMul")


def _rewrite(graph: ir.Graph, product: ir.Node) -> bool:
    weight, source = product.inputs[1], product.inputs[0]
    if weight is None or source is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return False
    movers: list[ir.Node] = []
    follower = only_user(product)
    while follower is not None and _keeps_channels(follower):
        movers.append(follower)
        follower = only_user(follower)
    if not movers or follower is None or follower.op_type != "Add":
        return False
    channels = int(weight.const_value.shape[0])
    value = source
    for mover in movers:
        value = _narrower(graph, mover, value, channels, before=product)
    product.replace_input_with(0, value)
    product.outputs[0].shape = movers[-1].outputs[0].shape
    movers[-1].outputs[0].replace_all_uses_with(product.outputs[0])
    graph.remove(movers, safe=True)
    return True


def _keeps_channels(node: ir.Node) -> bool:
    """Whether a node moves tokens about and leaves the last axis alone."""
    given, made = node.inputs[0], node.outputs[0]
    if node.op_type not in _MOVERS or given is None or given.shape is None or made.shape is None:
        return False
    if given.shape[-1] != made.shape[-1] or not isinstance(made.shape[-1], int):
        return False
    if node.op_type == "Transpose":
        return bool(node.attributes["perm"].as_ints()[-1] == len(made.shape) - 1)
    extra = node.inputs[1]
    if extra is None or extra.const_value is None:
        return False
    if node.op_type == "Reshape":
        return True  # the last axis keeps its length, so its elements stay together
    value = node.inputs[2] if len(node.inputs) > 2 else None
    pads = extra.const_value.numpy()
    with_zeros = value is None or (value.const_value is not None and not value.const_value.numpy().any())
    axes_named = len(node.inputs) > 3 and node.inputs[3] is not None
    constant = node.attributes.get_string("mode", "constant") == "constant"
    channels_padded = bool(pads[len(pads) // 2 - 1] or pads[-1])
    return with_zeros and constant and not axes_named and not channels_padded


def _narrower(graph: ir.Graph, mover: ir.Node, value: ir.Value, channels: int, *, before: ir.Node) -> ir.Value:
    """The same move of a tensor with fewer channels."""
    inputs: list[ir.Value | None] = [value, *mover.inputs[1:]]
    made = mover.outputs[0].shape
    assert made is not None
    shape = [*list(made)[:-1], channels]
    if mover.op_type == "Reshape":
        inputs[1] = add_constant(graph, f"{mover.name}.narrow", np.array(shape, np.int64))
    output = ir.Value(name=f"{mover.outputs[0].name}.narrow", shape=ir.Shape(shape), type=value.type)
    node = ir.node(mover.op_type, inputs, mover.attributes, outputs=[output], name=f"{mover.name}.narrow")
    graph.insert_before(before, node)
    return output


def only_user(node: ir.Node) -> ir.Node | None:
    """The one node that reads what a node gives; None if there are several, or the graph gives it away."""
    users: Sequence[ir.Node] = [use.node for value in node.outputs for use in value.uses()]
    return users[0] if len(users) == 1 and not any(value.is_graph_output() for value in node.outputs) else None
