"""Names for formulas that are no module of their own, so that a keep-list can speak of them.

Node names are module paths. Three formulas of the model are functions, and their nodes are called after whoever calls
them: "masked_decoder/Div". Here they get a scope: "masked_decoder.mean_in_mask/Div".
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

UNIT_LENGTH = "unit_length"
"""x / max(‖x‖, 1e-12): ReduceL2, Clip, Expand, Div."""
MEAN_IN_MASK = "mean_in_mask"
"""Mean of features where a mask is positive: Greater, Cast, ReduceSum, Max, MatMul, Div."""
SAMPLING_PLACES = "sampling_places"
"""Coordinates that GridSample reads at, from offsets in cells: Mul, Add, and what moves them."""


def name_formulas(model: ir.Model) -> int:
    """Put the nodes of the three formulas under scopes of their own; returns how many were renamed.

    Doing it twice changes nothing.
    """
    taken = {node.name for node in model.graph}
    renamed = 0
    for node in model.graph:
        for scope, members in _formulas_at(node):
            for member in members:
                name = member.name or ""
                place, _, kind = name.rpartition("/")
                if place.split(".")[-1] == scope:
                    continue
                wanted = f"{place}.{scope}/{kind}".lstrip(".")
                assert wanted not in taken, f"two nodes named {wanted}"  # the old names differ, so the new ones do
                taken.add(wanted)
                member.name = wanted
                renamed += 1
    return renamed


def _formulas_at(node: ir.Node) -> Iterator[tuple[str, list[ir.Node]]]:
    """Formulas that are recognised by this node."""
    if node.op_type == "ReduceL2":
        yield UNIT_LENGTH, _unit_length(node)
    elif node.op_type == "Greater":
        yield MEAN_IN_MASK, _mean_in_mask(node)
    elif node.op_type == "GridSample":
        yield SAMPLING_PLACES, _sampling_places(node)


def _unit_length(norm: ir.Node) -> list[ir.Node]:
    found = [norm]
    for kind in ("Clip", "Expand", "Div"):
        following = [user for user in _users(found[-1]) if user.op_type == kind]
        if len(following) != 1:
            return []
        found.append(following[0])
    return found


def _mean_in_mask(greater: ir.Node) -> list[ir.Node]:
    inside = next((user for user in _users(greater) if user.op_type == "Cast"), None)
    if inside is None:
        return []
    count = next((user for user in _users(inside) if user.op_type == "ReduceSum"), None)
    total = next((user for user in _users(inside) if user.op_type == "MatMul"), None)
    if count is None or total is None:
        return []
    at_least_one = next((user for user in _users(count) if user.op_type == "Max"), None)
    mean = next((user for user in _users(total) if user.op_type == "Div"), None)
    if at_least_one is None or mean is None:
        return []
    return [greater, inside, count, at_least_one, total, mean]


def _sampling_places(sample: ir.Node) -> list[ir.Node]:
    found: list[ir.Node] = []
    value = sample.inputs[1]
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in ("Reshape", "Transpose"):
        found.append(producer)
        value = producer.inputs[0]
        producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "Add":
        return []
    found.append(producer)
    factors = [value.producer() for value in producer.inputs if value is not None]
    return [*found, *(factor for factor in factors if factor is not None and factor.op_type == "Mul")]


def _users(node: ir.Node) -> list[ir.Node]:
    return [use.node for value in node.outputs for use in value.uses()]
