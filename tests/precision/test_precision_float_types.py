"""Rounding between float types."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from ebseg_deploy.export.precision.float_types import LARGEST, NUMPY, out_of_range, rounded, vanishes
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("to", ["fp32", "fp16", "bf16"])
def test_largest_is_the_types_own(to: str) -> None:
    assert float(ml_dtypes.finfo(NUMPY[to]).max) == LARGEST[to]


@settings(deadline=None)
@given(st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32))
def test_bf16_is_the_nearest_of_its_neighbours(value: float) -> None:
    """BF16 is the upper half of an FP32's bits; the nearest of the two around it wins, of equals the even one."""
    bits = int(np.float32(value).view(np.uint32))
    below = bits & 0xFFFF0000
    above = below + 0x10000
    rest = bits & 0xFFFF
    wanted = above if rest > 0x8000 or (rest == 0x8000 and (below >> 16) & 1) else below
    got = int(rounded(np.array([value], np.float32), "bf16").astype(np.float32).view(np.uint32)[0])
    assert got == wanted


def test_finite_values_saturate_and_infinities_stay() -> None:
    values = np.array([1e6, -1e6, math.inf, -math.inf, 65519.0, 65520.0], np.float32)
    assert rounded(values, "fp16").astype(np.float32).tolist() == [65504, -65504, math.inf, -math.inf, 65504, 65504]


def test_nan_stays() -> None:
    assert np.isnan(rounded(np.array([np.nan], np.float32), "fp16")).all()


def test_out_of_range_leaves_infinities_out() -> None:
    assert out_of_range(np.array([-7e4, 0.0, 7e4, 65504], np.float32), "fp16") == 2
    assert not out_of_range(np.array([0.0, 7e4], np.float32), "bf16")
    assert not out_of_range(np.array([0.0, -math.inf], np.float32), "fp16")
    assert not out_of_range(np.zeros(0, np.float32), "fp16")


def test_vanishes() -> None:
    assert vanishes(np.array(1e-8, np.float32), "fp16")
    assert not vanishes(np.array(1e-8, np.float32), "bf16")
    assert not vanishes(np.array([1e-8, 1.0], np.float32), "fp16")
    assert not vanishes(np.zeros(3, np.float32), "fp16")
