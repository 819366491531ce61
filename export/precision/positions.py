"""SAM's relative positions as a bias that is added to the scores, in place of a wider product.

The FP32 graphs carry the positions inside the attention product, [q, R_h, R_w] · [k, one-hot rows, one-hot columns],
which spares a CPU an (N, N) array. An engine that fuses attention knows MatMul, Add, Softmax, MatMul over (T, M, N, d)
and no other form. The numbers are the same: a product with one-hot columns picks one element each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """One block's attention, as the exporter wrote it; values by their meaning."""

    scores: ir.Node
    softmax: ir.Node
    mixing: ir.Node
    last: ir.Node
    """Reshape of the mixed values to (T, M, N, d)."""
    scaling: ir.Node
    """q times 1/√d."""
    q: ir.Value
    k: ir.Value
    v: ir.Value
    """(T, M, N, d)."""
    by_row: ir.Value
    """(T·M, h, w, h)."""
    by_column: ir.Value
    """(T·M, h, w, w)."""


def add_positions(model: ir.Model) -> int:
    """Rewrite every attention of a SAM image encoder, in place; returns how many. Other graphs have none."""
    found = [attention for node in model.graph if (attention := _attention_at(node)) is not None]
    for attention in found:
        _rewrite(model.graph, attention)
    return len(found)


def _attention_at(scores: ir.Node) -> _Attention | None:
    """The attention whose score product this node is, if it carries positions."""
    if scores.op_type != "MatMul":
        return None
    left, right = (_producer(value, "Concat") for value in scores.inputs)
    if left is None or right is None or len(left.inputs) != 2:
        return None
    scaling = _producer(left.inputs[0], "Mul")
    flat_positions = _producer(left.inputs[1], "Reshape")
    flipped = _producer(right.inputs[0], "Transpose")
    softmax = _only_user(scores.outputs[0], "Softmax")
    if scaling is None or flat_positions is None or flipped is None or softmax is None:
        return None
    positions = _producer(flat_positions.inputs[0], "Concat")
    mixing = _only_user(softmax.outputs[0], "MatMul")
    if positions is None or mixing is None or len(positions.inputs) != 2:
        return None
    last = _only_user(mixing.outputs[0], "Reshape")
    flat = [_producer(value, "Reshape") for value in (scaling.inputs[0], flipped.inputs[0], mixing.inputs[1])]
    if last is None or any(reshape is None for reshape in flat):
        return None
    q, k, v = (reshape.inputs[0] for reshape in flat if reshape is not None)
    by_row, by_column = positions.inputs
    if q is None or k is None or v is None or by_row is None or by_column is None:
        return None
    if q.shape is None or by_row.shape is None or not all(isinstance(length, int) for length in q.shape[1:]):
        return None
    return _Attention(
        scores=scores,
        softmax=softmax,
        mixing=mixing,
        last=last,
        scaling=scaling,
        q=q,
        k=k,
        v=v,
        by_row=by_row,
        by_column=by_column,
    )


def _rewrite(graph: ir.Graph, attention: _Attention) -> None:
    assert attention.q.shape is not None
    assert attention.by_row.shape is not None
    tiles, heads, tokens, width = attention.q.shape.dims
    group, rows, columns, _ = attention.by_row.shape.dims
    square = (tiles, heads, tokens, tokens)
    add = _Additions(graph, attention.scores)
    row = add.node("Unsqueeze", attention.by_row, add.whole_numbers(4), shape=(group, rows, columns, rows, 1))
    column = add.node("Unsqueeze", attention.by_column, add.whole_numbers(3), shape=(group, rows, columns, 1, columns))
    grid = add.node("Add", row, column, shape=(group, rows, columns, rows, columns))
    bias = add.node("Reshape", grid, add.whole_numbers(-1, int(heads), int(tokens), int(tokens)), shape=square)
    scaled = add.node("Mul", attention.q, attention.scaling.inputs[1], shape=(tiles, heads, tokens, width))
    turned = ir.AttrInt64s("perm", [0, 1, 3, 2])
    flipped = add.node("Transpose", attention.k, attribute=turned, shape=(tiles, heads, width, tokens))
    product = add.node("MatMul", scaled, flipped, shape=square, instead_of=attention.scores)
    scores = add.node("Add", product, bias, shape=square)
    last_axis = ir.AttrInt64("axis", -1)
    shares = add.node("Softmax", scores, attribute=last_axis, shape=square, instead_of=attention.softmax)
    mixed = add.node("MatMul", shares, attention.v, shape=(tiles, heads, tokens, width), instead_of=attention.mixing)
    attention.last.outputs[0].replace_all_uses_with(mixed)
    _remove_unread(graph, attention.last)


class _Additions:
    """New nodes before an old one, under its scope."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self._graph = graph
        self._before = before
        self._scope = (before.name or "").rpartition("/")[0]
        self._stem = f"{before.outputs[0].name}.positions"
        self._count = 0

    def node(
        self,
        kind: str,
        *inputs: ir.Value | None,
        shape: tuple[int | ir.SymbolicDim, ...],
        attribute: ir.Attr | None = None,
        instead_of: ir.Node | None = None,
    ) -> ir.Value:
        """Add a node and give its output. A node instead of another takes its name: keep-lists know it by that."""
        self._count += 1
        output = ir.Value(name=f"{self._stem}.{self._count}", shape=ir.Shape(shape), type=self._before.outputs[0].type)
        name = (
            instead_of.name if instead_of is not None else f"{self._scope}.positions/{kind}_{self._count}".lstrip(".")
        )
        attributes = [] if attribute is None else [attribute]
        self._graph.insert_before(self._before, ir.Node("", kind, inputs, attributes, outputs=[output], name=name))
        return output

    def whole_numbers(self, *values: int) -> ir.Value:
        """A constant, int64 (len(values))."""
        self._count += 1
        tensor = ir.Tensor(np.array(values, np.int64), name=f"{self._stem}.{self._count}")
        value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value


def _remove_unread(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node that nobody reads, and then those that only it read."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    producers = [value.producer() for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for producer in dict.fromkeys(producers):
        if producer is not None:
            _remove_unread(graph, producer)


def _producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == kind else None


def _only_user(value: ir.Value, kind: str) -> ir.Node | None:
    users = list(value.uses())
    return users[0].node if len(users) == 1 and users[0].node.op_type == kind else None
