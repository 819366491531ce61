"""Lower a graph from FP32 to FP16 or BF16, in place: types, constants, and casts where types meet.

Every node computes in one type: the base, or what the keep-list says. A cast stands on each border between two types,
once for all who read across it, so that there are no two casts in a row. The graph's own border stays FP32, which
also spares ONNX Runtime a half-precision output that is read inside as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from ...contract import FloatType, KeptRecord
from ...errors import ExportError
from .float_types import HALF_TYPES, ONNX, out_of_range, rounded, vanishes
from .operators import MOVES, computes, counts, decides, follows, is_float
from .recipes import Keep

QDQ_OPSET = 19
"""The first in which Q/DQ scales may be of another type than FP32."""

_WEIGHTS = frozenset({"Conv", "ConvTranspose", "Gemm", "LayerNormalization", "MatMul", "DequantizeLinear"})
"""Operators whose constants are weights; those of others may be limits and masks, which may saturate."""


@dataclass(frozen=True, kw_only=True)
class Saturated:
    """Values of a constant that a type cannot hold, and that became its largest one. Of a mask's -1e9 no harm comes."""

    node: str
    """The first that reads it."""
    constant: str
    values: int
    """How many."""
    type: FloatType


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """What `lower` did."""

    base: FloatType
    kept: tuple[KeptRecord, ...]
    """Keeps that keep something."""
    casts: int
    """Cast nodes added."""
    nodes: dict[FloatType, int]
    """How many nodes compute in each type."""
    saturated: tuple[Saturated, ...]
    """Constants with values that were beyond the type's range."""


def lower(model: ir.Model, base: FloatType, keep: Sequence[Keep] = ()) -> Lowering:
    """Turn an FP32 graph into one that computes in `base`, in place.

    Args:
        model: FP32 floats throughout. It may contain Q/DQ pairs; their scales become the base type, and the opset 19.
        base: type of whatever is not kept. With "fp32" nothing is changed.
        keep: nodes that compute in a wider type; the first whose pattern fits a node's name counts. A keep of the
            base type itself says nothing here.

    Raises:
        ExportError: the graph is lowered already, has an operator with a graph inside, or a constant that the base
            type cannot hold.
    """
    _check(model)
    types = _assign(model, base, keep)
    kept = _kept(model, keep)
    saturated: list[Saturated] = []
    casts = 0
    if base != "fp32" or any(type_ != "fp32" for type_ in types.values()):
        saturated = _type_constants(model, types)
        _type_values(types)
        casts = _insert_casts(model, types)
        if any(node.op_type == "DequantizeLinear" for node in model.graph):
            model.opset_imports[""] = max(QDQ_OPSET, model.opset_imports[""])
    return Lowering(
        base=base,
        kept=kept,
        casts=casts,
        nodes=dict(Counter(types.values())),
        saturated=tuple(saturated),
    )


def _check(model: ir.Model) -> None:
    for node in model.graph:
        kinds = {attribute.type for attribute in node.attributes.values()}
        if kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
            raise ExportError(
                f"node {node.name}: {node.op_type} has a graph inside", cure="export without control flow"
            )
    if _untyped(model) is not None:
        ir_passes.ShapeInferencePass()(model)
    untyped = _untyped(model)
    if untyped is not None:
        raise ExportError(f"tensor {untyped.name}: its type cannot be told", cure="export the graph again")
    values = [*model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)]
    lowered = next((value for value in values if value.dtype in HALF_TYPES), None)
    if lowered is not None:
        raise ExportError(f"tensor {lowered.name} is {lowered.dtype} already", cure="start from the FP32 graph")


def _untyped(model: ir.Model) -> ir.Value | None:
    """A tensor whose type the file does not give."""
    return next((value for node in model.graph for value in node.outputs if value.dtype is None), None)


def _kept(model: ir.Model, keep: Sequence[Keep]) -> tuple[KeptRecord, ...]:
    """How many nodes each keep is the first to fit."""
    found: Counter[int] = Counter()
    for node in model.graph:
        index = next((i for i, each in enumerate(keep) if computes(node) and each.matches(node.name or "")), None)
        if index is not None:
            found[index] += 1
    return tuple(
        KeptRecord(pattern=each.pattern, precision=each.precision, reason=each.reason, nodes=found[i])
        for i, each in enumerate(keep)
        if found[i]
    )


def _assign(model: ir.Model, base: FloatType, keep: Sequence[Keep]) -> dict[ir.Node, FloatType]:
    """The type each node computes in."""
    types: dict[ir.Node, FloatType] = {}
    asked: set[ir.Node] = set()
    for node in model.graph:
        if not computes(node):
            continue
        fitting = next((each for each in keep if each.matches(node.name or "")), None)
        if fitting is not None:
            types[node] = fitting.precision
            asked.add(node)
        elif counts(node):
            types[node] = "fp32"
        elif decides(node) and any(_made_in(types, value) == "fp32" for value in node.inputs if is_float(value)):
            types[node] = "fp32"  # a decision is taken on what is there, not on what it rounds to
        else:
            types[node] = base
    for node in _between_islands(model, types, asked):
        types[node] = "fp32"
    return types


def _between_islands(model: ir.Model, types: dict[ir.Node, FloatType], asked: set[ir.Node]) -> set[ir.Node]:
    """Nodes that do nothing but move values from FP32 to FP32: two casts less, and nothing rounded between."""
    from_fp32: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type in MOVES and node in types and node not in asked:
            before = [value for value in node.inputs if is_float(value) and _made_in(types, value) is not None]
            if before and all(_made_in(types, value) == "fp32" or value.producer() in from_fp32 for value in before):
                from_fp32.add(node)
    between: set[ir.Node] = set()
    for node in reversed(model.graph):
        readers = [use.node for value in node.outputs for use in value.uses()]
        if node in from_fp32 and all(types.get(each) == "fp32" or each in between for each in readers):
            between.add(node)
    return between


def _made_in(types: dict[ir.Node, FloatType], value: ir.Value | None) -> FloatType | None:
    """The type a value is produced in; None for a constant, which can be had in any."""
    if value is None or value.const_value is not None:
        return None
    producer = value.producer()
    return "fp32" if producer is None else types[producer]


def _type_constants(model: ir.Model, types: dict[ir.Node, FloatType]) -> list[Saturated]:
    """Give every node its constants in its own type; returns those that saturated."""
    graph = model.graph
    saturated: list[Saturated] = []
    copies: dict[tuple[ir.Value, FloatType], ir.Value] = {}
    for node, type_ in types.items():
        for index, value in enumerate(node.inputs):
            if type_ == "fp32" or value is None or value.const_value is None or not is_float(value):
                continue
            if not follows(node, index):
                continue
            if (value, type_) not in copies:
                saturated += _check_constant(node, value, type_)
                copies[value, type_] = _rounded_copy(value, type_)
                graph.register_initializer(copies[value, type_])
            node.replace_input_with(index, copies[value, type_])
    for value, _ in copies:
        if not value.uses() and not value.is_graph_output() and value.name in graph.initializers:
            del graph.initializers[value.name]
    return saturated


def _check_constant(node: ir.Node, value: ir.Value, type_: FloatType) -> list[Saturated]:
    assert value.const_value is not None
    values = value.const_value.numpy()
    if vanishes(values, type_):
        raise ExportError(
            f"node {node.name}: constant {value.name} is 0 in {type_.upper()}", cure="keep the node in FP32"
        )
    beyond = out_of_range(values, type_)
    if not beyond:
        return []
    if node.op_type in _WEIGHTS:
        raise ExportError(
            f"node {node.name}: weight {value.name} is beyond the range of {type_.upper()}",
            cure="keep the node in FP32",
        )
    return [Saturated(node=node.name or "", constant=value.name or "", values=beyond, type=type_)]


def _rounded_copy(value: ir.Value, type_: FloatType) -> ir.Value:
    """The same constant in another type, rounded when it is read: never two graphs' weights in memory."""
    tensor = value.const_value
    assert tensor is not None
    name = f"{value.name}.{type_}"
    lazy = ir.LazyTensor(
        lambda: ir.Tensor(rounded(tensor.numpy(), type_), name=name),
        dtype=ONNX[type_],
        shape=ir.Shape(list(tensor.shape)),
        name=name,
    )
    return ir.Value(name=name, shape=value.shape, type=ir.TensorType(ONNX[type_]), const_value=lazy)


def _type_values(types: dict[ir.Node, FloatType]) -> None:
    for node, type_ in types.items():
        floats = [value for value in node.outputs if is_float(value)]
        for value in floats:
            value.type = ir.TensorType(ONNX[type_])
        if node.op_type == "Cast" and floats:
            node.attributes["to"] = ir.AttrInt64("to", ONNX[type_].value)


def _insert_casts(model: ir.Model, types: dict[ir.Node, FloatType]) -> int:
    """Put a cast wherever a value is read in another type than it is made in."""
    graph = model.graph
    wanted: dict[tuple[ir.Value, FloatType], list[tuple[ir.Node, int]]] = {}
    for node, type_ in types.items():
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is not None or not follows(node, index):
                continue
            if value.dtype in ONNX.values() and value.dtype != ONNX[type_]:
                wanted.setdefault((value, type_), []).append((node, index))
    for value in graph.outputs:
        if value.dtype in HALF_TYPES:
            wanted.setdefault((value, "fp32"), [])
    first = graph[0]
    for (value, type_), readers in wanted.items():
        cast = _cast(value, type_)
        producer = value.producer()
        if producer is None:
            graph.insert_before(first, cast)
        else:
            graph.insert_after(producer, cast)
        for node, index in readers:
            node.replace_input_with(index, cast.outputs[0])
        if value.is_graph_output() and type_ == "fp32":
            _give_out(graph, value, cast.outputs[0])
    return len(wanted)


def _cast(value: ir.Value, type_: FloatType) -> ir.Node:
    name = f"{value.name}.{type_}"
    output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(ONNX[type_]))
    return ir.Node(
        "",
        "Cast",
        [value],
        [ir.AttrInt64("to", ONNX[type_].value)],
        outputs=[output],
        name=f"casts/{name}",
    )


def _give_out(graph: ir.Graph, inner: ir.Value, cast: ir.Value) -> None:
    """Let the cast value take the name and the place of a graph output that is half precision inside."""
    name = inner.name
    inner.name = f"{name}.inner"
    cast.name = name
    for index, value in enumerate(graph.outputs):
        if value is inner:
            graph.outputs[index] = cast
