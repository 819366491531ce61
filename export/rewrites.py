"""Rewrites after tracing: the same numbers, in the form that engines recognise."""

from __future__ import annotations

import onnx_ir as ir


def standard_gelu(model: ir.Model) -> int:
    """Turn x · (½ · (1 + erf(x/√2))) into (x · (1 + erf(x/√2))) · ½; returns how many were turned.

    The exporter writes the first, ONNX Runtime and TensorRT fuse the second into one Gelu. A factor of ½ is exact in
    binary floating point, so both round alike.
    """
    turned = 0
    for erf in list(model.graph):
        if erf.op_type != "Erf":
            continue
        plus_one = _only_user(erf)
        half = _only_user(plus_one)
        times_x = _only_user(half)
        source = erf.inputs[0].producer() if erf.inputs[0] is not None else None
        if plus_one is None or half is None or times_x is None or source is None:
            continue
        if (plus_one.op_type, half.op_type, times_x.op_type, source.op_type) != ("Add", "Mul", "Mul", "Div"):
            continue
        x = source.inputs[0]
        one_half = next((i for i, value in enumerate(half.inputs) if value is not None and _scalar(value) == 0.5), None)
        if one_half is None or x not in times_x.inputs:
            continue
        constant = half.inputs[one_half]
        half.replace_input_with(one_half, x)
        times_x.replace_input_with(list(times_x.inputs).index(x), constant)
        turned += 1
    return turned


def _only_user(node: ir.Node | None) -> ir.Node | None:
    if node is None or len(node.outputs) != 1:
        return None
    users = list(node.outputs[0].uses())
    return users[0].node if len(users) == 1 else None


def _scalar(value: ir.Value) -> float | None:
    tensor = value.const_value
    return float(tensor.numpy()) if tensor is not None and tensor.size == 1 else None
