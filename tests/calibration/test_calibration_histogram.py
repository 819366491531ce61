"""Histograms: exact counts, whatever the order, however the values were spread."""

from __future__ import annotations

import numpy as np
import pytest
from ebseg_deploy.calibration.histogram import BINS, Histogram, NotFiniteError, exponent_for
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
ARRAYS = arrays(np.float32, st.integers(1, 40), elements=FLOATS)


def histogram_of(*parts: np.ndarray, bins: int = BINS) -> Histogram:
    histogram = Histogram(bins)
    for part in parts:
        histogram.add(part)
    return histogram


@given(st.lists(ARRAYS, min_size=1, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_neither_order_nor_merging_matters(parts: list[np.ndarray], random: object) -> None:
    whole = histogram_of(np.concatenate(parts), bins=64)
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert histogram_of(*shuffled, bins=64) == whole
    merged = Histogram(64)
    for part in shuffled:
        merged.merge(histogram_of(part, bins=64))
    assert merged == whole
    left, right = histogram_of(*parts[:2], bins=64), histogram_of(*parts[2:], bins=64)
    right.merge(left)
    assert right == whole


@pytest.mark.parametrize("first", [[0.0], [1e-40], [-0.0, 0.0]])
def test_zeros_that_come_first_do_not_widen_the_bins(first: list[float]) -> None:
    small = np.array([0.25, -0.01], np.float32)
    zeros = np.array(first, np.float32)
    assert histogram_of(zeros, small) == histogram_of(small, zeros) == histogram_of(np.concatenate([small, zeros]))


@given(ARRAYS)
@settings(max_examples=100, deadline=None)
def test_every_value_is_in_the_bin_that_holds_it(values: np.ndarray) -> None:
    histogram = histogram_of(values, bins=16)
    exact = np.floor(np.abs(values.astype(np.float64)) / histogram.width).astype(int)
    assert histogram.counts.tolist() == np.bincount(exact, minlength=16).tolist()
    assert (histogram.smallest, histogram.largest) == (values.min(), values.max())
    assert histogram.amax < 16 * histogram.width


def test_counts_are_numpys() -> None:
    values = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
    histogram = histogram_of(*np.array_split(values, 7))
    edges = np.arange(BINS + 1) * histogram.width
    assert histogram.counts.tolist() == np.histogram(np.abs(values), edges)[0].tolist()
    assert histogram.values == values.size


@pytest.mark.parametrize("amax", [1e-26, 0.0099, 0.5, 1.0, 1.9999999, 2.0, 448.0, 65504.0, 3.4e38])
def test_the_largest_value_lies_in_the_upper_half(amax: float) -> None:
    histogram = histogram_of(np.array([amax, 0], np.float32))
    place = int(np.flatnonzero(histogram.counts)[-1])
    assert BINS // 2 <= place < BINS
    assert exponent_for(float(np.float32(amax)), BINS) == histogram.exponent


def test_zeros_tiny_values_and_nothing() -> None:
    histogram = histogram_of(np.zeros(5, np.float32), np.array([], np.float32), np.array([1e-42, -1e-45], np.float32))
    assert histogram.counts[0] == 7
    assert histogram.amax == pytest.approx(1e-42, rel=1e-2)
    assert Histogram().amax == 0
    assert Histogram().values == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.int8])
def test_other_types_are_counted_as_float32(dtype: type) -> None:
    values = np.random.default_rng(1).integers(0, 100, 500).astype(dtype)
    assert histogram_of(values) == histogram_of(values.astype(np.float32))


def test_a_double_that_rounds_up_to_a_power_of_two_has_its_bin() -> None:
    histogram = histogram_of(np.array([np.nextafter(2.0, 0)]))  # 2.0 as float32, where a bin begins
    assert histogram.values == 1
    assert histogram.largest == 2.0


def test_non_contiguous_views_are_counted_whole() -> None:
    values = np.random.default_rng(2).normal(size=(30, 40, 3)).astype(np.float32)
    assert histogram_of(values.transpose(2, 0, 1)[:, ::2]) == histogram_of(values[::2].copy())


@pytest.mark.parametrize(
    ("bad", "said"), [(np.nan, "2 NaN of 12 values"), (np.inf, "2 infinite of 12 values"), (-np.inf, "2 infinite")]
)
def test_nan_and_infinity_are_refused_and_nothing_is_counted(bad: float, said: str) -> None:
    values = np.arange(12, dtype=np.float32)
    values[3] = values[7] = bad
    histogram = Histogram()
    with pytest.raises(NotFiniteError, match=said):
        histogram.add(values)
    assert histogram == Histogram()


def test_share_beyond_a_threshold() -> None:
    values = np.linspace(0, 1, 100_001, dtype=np.float32)
    histogram = histogram_of(values)
    for threshold in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9999):
        assert histogram.beyond(threshold) == pytest.approx(1 - threshold, abs=1e-3)
    assert histogram.beyond(1.0) == 0
    assert histogram.beyond(5.0) == 0
