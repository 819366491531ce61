"""Weights and scales in INT8 and FP8: symmetric, so that a zero stays a zero and TensorRT takes them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..contract import FloatType, QuantisedType
from ..export.precision.float_types import NUMPY

Array = npt.NDArray[Any]

LARGEST: Mapping[QuantisedType, float] = MappingProxyType({"int8": 127.0, "fp8": 448.0})
"""What the largest |value| becomes. −128 is not used: TensorRT's INT8 is symmetric. 448 is E4M3's largest."""

ONNX: Mapping[QuantisedType, ir.DataType] = MappingProxyType(
    {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
)

_LEAST: Mapping[FloatType, float] = MappingProxyType({"fp32": 2.0**-126, "fp16": 2.0**-24, "bf16": 2.0**-126})
"""The least number of each type that is not flushed to 0; a subnormal one in FP16, where weights of 0.005 get there."""


def scale_for(amax: Array | float, to: QuantisedType, base: FloatType) -> Array:
    """The step (INT8) or factor (FP8) that takes values up to `amax`: amax / 127, amax / 448.

    It is a number that `base` can hold, and never 0: the graph divides and multiplies by exactly what the weights were
    quantised with.

    Returns:
        float32, of amax's shape.
    """
    wanted = np.asarray(amax, np.float32) / np.float32(LARGEST[to])
    least = _LEAST[base]
    # An activation that was 0 in all pictures, or a weight's row of zeros: any step will do.
    held = np.maximum(wanted, np.float32(least)).astype(NUMPY[base])
    return np.asarray(held, np.float32)


def quantised(values: Array, scale: Array | float, to: QuantisedType) -> Array:
    """Values in steps of `scale`, to nearest (ties to even), saturating.

    Args:
        values: float32.
        scale: broadcastable to values.

    Returns:
        int8, or float8_e4m3fn.
    """
    limit = LARGEST[to]
    steps = np.clip(values / scale, -limit, limit)
    if to == "int8":
        return np.rint(steps).astype(np.int8)
    return steps.astype(ml_dtypes.float8_e4m3fn)


def channel_amax(weight: Array, axis: int) -> Array:
    """(channels,) largest |weight| of each output channel."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.asarray(np.abs(weight).max(axis=others))


def along(scale: Array, axis: int, ndim: int) -> Array:
    """A scale per channel, shaped to be broadcast along that axis of a weight."""
    return scale.reshape([-1 if i == axis else 1 for i in range(ndim)])


def add_constant(graph: ir.Graph, name: str, values: Array) -> ir.Value:
    """Give a graph a constant of that name."""
    tensor = ir.Tensor(np.asarray(values), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
