"""FP32, FP16 and BF16 as numpy and ONNX know them, and rounding from one to another."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...contract import FloatType

Array = npt.NDArray[Any]

ONNX: Mapping[FloatType, ir.DataType] = MappingProxyType(
    {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
)

NUMPY: Mapping[FloatType, np.dtype[Any]] = MappingProxyType(
    {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
)

LARGEST: Mapping[FloatType, float] = MappingProxyType(
    {"fp32": float(np.finfo(np.float32).max), "fp16": 65504.0, "bf16": (2 - 2**-7) * 2.0**127}
)
"""Largest finite value: 65,504 in FP16."""

HALF_TYPES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def rounded(values: Array, to: FloatType) -> Array:
    """Values in another float type, to nearest, ties to even; finite values beyond its range saturate.

    Infinities stay infinite: the causal mask of a text encoder is made of them.
    """
    limit = LARGEST[to]
    if to == "fp32":
        return values.astype(NUMPY[to])
    saturated = np.where(np.isfinite(values), np.clip(values, -limit, limit), values)
    return saturated.astype(NUMPY[to])


def out_of_range(values: Array, to: FloatType) -> int:
    """How many finite values are too large for a type."""
    return int(np.count_nonzero(np.isfinite(values) & (np.abs(values) > LARGEST[to])))


def vanishes(values: Array, to: FloatType) -> bool:
    """Whether values that are not all zero become all zero in a type, as 1e-8 does in FP16."""
    return bool(np.any(values)) and not np.any(rounded(values, to))
