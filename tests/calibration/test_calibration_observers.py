"""Observers against closed forms, brute force over the values themselves, and plain references."""

from __future__ import annotations

import numpy as np
import pytest
from ebseg_deploy.calibration.histogram import BINS, Histogram
from ebseg_deploy.calibration.observers import (
    STEPS,
    EntropyObserver,
    MaxObserver,
    MseObserver,
    Observer,
    PercentileObserver,
    clipping_divergence,
    observed_range,
    observer_named,
    rounded,
)
from ebseg_deploy.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

ALL = ["max", "percentile:99.9", "percentile:100", "entropy", "mse", "mse:fp8"]


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    return histogram


def int8_error(values: np.ndarray, threshold: float) -> float:
    """Mean squared error of symmetric INT8, on the values themselves."""
    scale = threshold / 127
    return float(np.mean((values - np.clip(np.rint(values / scale), -127, 127) * scale) ** 2))


def test_max_is_the_largest_magnitude() -> None:
    assert MaxObserver().threshold(histogram_of(np.array([-3.25, 1, 2]))) == 3.25


@pytest.mark.parametrize("percent", [0.5, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("kind", ["uniform", "normal", "heavy"])
def test_percentile_is_numpys_to_a_bins_width(percent: float, kind: str) -> None:
    rng = np.random.default_rng(3)
    draw = {"uniform": rng.uniform, "normal": rng.normal, "heavy": lambda size: rng.standard_t(3, size)}[kind]
    values = draw(size=200_000).astype(np.float32)
    histogram = histogram_of(values)
    found = PercentileObserver(percent=percent).threshold(histogram)
    expected = float(np.percentile(np.abs(values), percent))
    # Beyond the bin's width: where values are sparse, neighbours lie further apart than a bin.
    ranked = np.sort(np.abs(values))
    place = round(percent / 100 * (values.size - 1))
    sparse = ranked[min(place + 1, values.size - 1)] - ranked[max(place - 1, 0)]
    assert abs(found - expected) <= histogram.width + sparse


def test_percentile_of_a_uniform_distribution_is_its_closed_form() -> None:
    values = np.linspace(-2, 2, 400_001)
    assert PercentileObserver(percent=75).threshold(histogram_of(values)) == pytest.approx(1.5, abs=1e-3)


def test_mse_of_a_laplace_distribution_is_its_closed_form() -> None:
    """Clipping at t with 2^8 steps errs by 2b² exp(-t/b) + t²/(3·4^8): least at t = 9.89 b (Banner et al. 2019)."""
    quantiles = (np.arange(2_000_000) + 0.5) / 2_000_000
    values = -np.log1p(-quantiles)  # |x| of a Laplace distribution with b = 1
    found = MseObserver().threshold(histogram_of(values))
    assert found == pytest.approx(9.89, abs=0.25)


@pytest.mark.parametrize("kind", ["normal", "heavy", "outlier", "relu"])
def test_mse_is_the_optimum_by_brute_force_over_the_values(kind: str) -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=20_000)
    if kind == "heavy":
        values = rng.standard_t(3, 20_000)
    elif kind == "outlier":
        values[0] = 60.0
    elif kind == "relu":
        values = np.maximum(values, 0)
    amax = float(np.abs(values).max())
    best = min(int8_error(values, threshold) for threshold in np.linspace(amax / 32, amax, 800))
    found = MseObserver().threshold(histogram_of(values))
    assert int8_error(values, found) <= best * 1.02


def test_mse_of_a_uniform_distribution_clips_nothing() -> None:
    values = np.linspace(-1, 1, 100_001)
    assert MseObserver().threshold(histogram_of(values)) == pytest.approx(1, abs=5e-3)


def test_int8_grid_has_255_even_steps() -> None:
    values = np.linspace(0, 1.5, 1000)
    found = rounded(values, 1.0, "int8")
    assert np.unique(found).tolist() == pytest.approx((np.arange(128) / 127).tolist())
    assert np.abs(found - np.minimum(values, 1)).max() <= 0.5 / 127 + 1e-12


def test_fp8_grid_is_e4m3() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.concatenate([np.geomspace(1e-4, 448, 5000), [0, 448, 2**-9, 2**-6, 2**-10 * 1.01]])
    expected = values.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    assert rounded(values, 448.0, "fp8").tolist() == expected.tolist()
    assert rounded(np.array([3.0]), 1.0, "fp8").tolist() == [1.0]


def plain_divergence(counts: list[int], kept: int) -> float:
    """Migacz' steps, one bin at a time."""
    p = [float(count) for count in counts[:kept]]
    p[-1] += sum(counts[kept:])
    q = [0.0] * kept
    for step in range(STEPS):
        bins = range(step * kept // STEPS, (step + 1) * kept // STEPS)
        held = [place for place in bins if counts[place] > 0]
        for place in held:
            q[place] = sum(counts[each] for each in bins) / len(held)
    if sum(q) == 0:
        return float("inf")
    total = 0.0
    for mine, other in zip(p, q, strict=True):
        if mine > 0:
            if other == 0:
                return float("inf")
            mine, other = mine / sum(p), other / sum(q)
            total += mine * np.log(mine / other)
    return total


@given(arrays(np.int64, 300, elements=st.integers(0, 3) | st.integers(0, 1000)), st.integers(STEPS, 300))
@settings(max_examples=60, deadline=None)
def test_divergence_is_the_plain_references(counts: np.ndarray, kept: int) -> None:
    assert clipping_divergence(counts, kept) == pytest.approx(plain_divergence(counts.tolist(), kept), rel=1e-9)


def test_divergence_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    counts = np.random.default_rng(5).integers(1, 100, 512)
    kept = 300
    p = counts[:kept].astype(float)
    p[-1] += counts[kept:].sum()
    group = np.searchsorted(np.arange(1, STEPS + 1) * kept // STEPS, np.arange(kept), side="right")
    means = np.array([counts[:kept][group == each].mean() for each in range(STEPS)])
    assert clipping_divergence(counts, kept) == pytest.approx(stats.entropy(p, means[group]), rel=1e-9)


def test_entropy_takes_the_smallest_divergence_and_drops_outliers() -> None:
    values = np.random.default_rng(6).normal(size=200_000)
    values[:3] = 40.0
    histogram = histogram_of(values)
    found = EntropyObserver().threshold(histogram)
    assert 2 < found < 10
    kept = round(found / histogram.width)
    counts = histogram.counts
    counts[0] = counts[1]
    tried = [clipping_divergence(counts, each) for each in range(STEPS, BINS, 16)]
    assert clipping_divergence(counts, kept) <= min(tried) * 1.2


def test_entropy_does_not_mind_a_relus_zeros() -> None:
    values = np.abs(np.random.default_rng(7).normal(size=200_000))
    plain = EntropyObserver().threshold(histogram_of(values))
    many = EntropyObserver().threshold(histogram_of(np.concatenate([values, np.zeros(2_000_000)])))
    assert many == pytest.approx(plain, rel=0.05)
    assert plain > 3


@pytest.mark.parametrize("spelling", ALL)
@given(values=arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)))
@settings(max_examples=25, deadline=None)
def test_ranges_lie_within_the_values_and_are_as_wide_as_the_threshold(spelling: str, values: np.ndarray) -> None:
    histogram = histogram_of(values)
    observer = observer_named(spelling)
    threshold = observer.threshold(histogram)
    found = observed_range(histogram, observer)
    assert 0 <= threshold <= histogram.amax
    assert (threshold == 0) == (histogram.amax == 0)
    assert found.amax == threshold
    assert found.low <= found.high
    assert 0 <= found.clipped <= 1
    if spelling in ("max", "percentile:100"):
        assert (found.low, found.high, found.clipped) == (values.min(), values.max(), 0)


@pytest.mark.parametrize("spelling", ALL)
def test_constant_and_empty_activations(spelling: str) -> None:
    observer: Observer = observer_named(spelling)
    assert observed_range(Histogram(), observer).amax == 0
    assert observed_range(histogram_of(np.zeros(9)), observer).amax == 0
    constant = observed_range(histogram_of(np.full(1000, 5.0)), observer)
    assert constant.amax == pytest.approx(5, rel=0.01)


@pytest.mark.parametrize("spelling", [*ALL, "percentile:99.99"])
def test_spelling_names_the_same_rule_again(spelling: str) -> None:
    assert observer_named(spelling).spelling == spelling
    assert observer_named("percentile") == PercentileObserver(percent=99.99)


@pytest.mark.parametrize("spelling", ["", "minmax", "percentile:", "percentile:abc", "percentile:0", "percentile:101"])
def test_unknown_rules_are_refused(spelling: str) -> None:
    with pytest.raises(InputError, match="observer"):
        observer_named(spelling)


def test_percentile_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="nan %"):
        observer_named("percentile:nan")
