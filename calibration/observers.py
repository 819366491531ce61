"""Where to clip an activation: four rules that look at a histogram of |x| and name a threshold.

Clipping trades two errors: a lower threshold gives smaller steps to the many values below it and cuts the few above.
All thresholds are symmetric, and none lies above the largest |x|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .histogram import Histogram
from .ranges import Range

STEPS = 128
"""Steps of |x| in INT8: 0 to 127."""

CANDIDATES = 256
"""Thresholds tried by the entropy and the MSE rule, evenly spaced from STEPS bins to the largest value."""

E4M3_LARGEST = 448.0
E4M3_MANTISSA_BITS = 3
E4M3_LEAST_EXPONENT = -6

Grid = Literal["int8", "fp8"]


class Observer(Protocol):
    """A rule."""

    @property
    def spelling(self) -> str:
        """As `observer_named` takes it; names the rule in files."""

    def threshold(self, histogram: Histogram) -> float:
        """Where to clip |x|: above 0 and at most `histogram.amax`, or 0 if that is 0."""


@dataclass(frozen=True, kw_only=True)
class MaxObserver:
    """Clip nothing."""

    spelling = "max"

    def threshold(self, histogram: Histogram) -> float:
        return histogram.amax


@dataclass(frozen=True, kw_only=True)
class PercentileObserver:
    """Clip the largest |x|, so that `percent` of the values stay."""

    percent: float = 99.99

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise InputError(f"observer percentile: {self.percent:g} %", cure="give more than 0 and at most 100")

    @property
    def spelling(self) -> str:
        return f"percentile:{self.percent:g}"

    def threshold(self, histogram: Histogram) -> float:
        cumulative = np.cumsum(histogram.counts)
        wanted = self.percent / 100 * float(cumulative[-1])
        place = int(np.searchsorted(cumulative, wanted))
        if place >= histogram.bins or self.percent == 100:
            return histogram.amax
        before = float(cumulative[place - 1]) if place else 0.0
        part = (wanted - before) / max(float(histogram.counts[place]), 1.0)  # values lie evenly within a bin
        return min((place + part) * histogram.width, histogram.amax)


@dataclass(frozen=True, kw_only=True)
class EntropyObserver:
    """Lose least information: the threshold with the smallest Kullback-Leibler divergence.

    For each threshold, P is the distribution with all that is clipped put into its last bin, and Q the distribution
    without it, its bins joined to 128 groups, each group's mass spread evenly over those of its bins that hold values.

    The first bin counts no more than the second: zeros, of which a ReLU makes many, are exact on every grid, and joined
    with their neighbours they would outweigh all else (on nano, thresholds that clip 28 % of a layer).

    Source: Migacz, '8-bit inference with TensorRT', GTC 2017; the first bin as in NVIDIA's pytorch-quantization.
    """

    spelling = "entropy"

    def threshold(self, histogram: Histogram) -> float:
        best, least = histogram.amax, math.inf
        counts = histogram.counts.copy()
        counts[0] = min(counts[0], counts[1])
        for kept in _candidates(histogram):
            divergence = clipping_divergence(counts, kept)
            if divergence < least:
                best, least = kept * histogram.width, divergence
        return min(best, histogram.amax)


@dataclass(frozen=True, kw_only=True)
class MseObserver:
    """Smallest mean squared error of the values rounded to the grid, those above the threshold clipped."""

    grid: Grid = "int8"

    @property
    def spelling(self) -> str:
        return "mse" if self.grid == "int8" else f"mse:{self.grid}"

    def threshold(self, histogram: Histogram) -> float:
        held = np.flatnonzero(histogram.counts)
        counts = histogram.counts[held].astype(np.float64)
        centres: npt.NDArray[np.float64] = (held + np.float64(0.5)) * histogram.width
        best, least = histogram.amax, math.inf
        for kept in _candidates(histogram):
            threshold = min(kept * histogram.width, histogram.amax)
            error = float(counts @ np.square(centres - rounded(centres, threshold, self.grid)))
            if error < least:
                best, least = threshold, error
        return best


def _candidates(histogram: Histogram) -> list[int]:
    """Numbers of bins to keep, in rising order; the last one keeps all values."""
    used = int(np.flatnonzero(histogram.counts)[-1]) + 1 if histogram.amax else 0
    if used <= STEPS:  # so few bins that nothing is gained by clipping: all values lie within 128 steps
        return [used] if used else []
    return sorted({int(kept) for kept in np.linspace(STEPS, used, min(CANDIDATES, used - STEPS + 1))})


def clipping_divergence(counts: npt.NDArray[np.int64], kept: int) -> float:
    """Kullback-Leibler divergence D(P‖Q), in nats, of clipping a histogram to its first bins.

    Args:
        counts: int64 (bins,).
        kept: how many bins stay, at least STEPS.

    Returns:
        inf where P has mass and Q none: values were clipped into a bin that is empty itself.
    """
    within = counts[:kept].astype(np.float64)
    clipped = float(counts[kept:].sum())
    starts = np.arange(STEPS) * kept // STEPS
    group = np.repeat(np.arange(STEPS), np.diff(np.append(starts, kept)))
    holds = within > 0
    holding = np.bincount(group, weights=holds, minlength=STEPS)
    mass = np.bincount(group, weights=within, minlength=STEPS)
    spread = np.divide(mass, holding, out=np.zeros(STEPS), where=holding > 0)[group] * holds
    if clipped and not holds[-1]:
        return math.inf
    total = within.sum()
    if total == 0:
        return math.inf
    within[-1] += clipped
    p = within[holds] / (total + clipped)
    q = spread[holds] / total
    return float(np.sum(p * np.log(p / q)))


def rounded(values: npt.NDArray[np.float64], threshold: float, grid: Grid) -> npt.NDArray[np.float64]:
    """|x| after quantisation to a grid whose largest value is `threshold`, and back."""
    if grid == "int8":
        scale = threshold / (STEPS - 1)
        steps: npt.NDArray[np.float64] = np.minimum(np.rint(values / scale), STEPS - 1)
        return steps * scale
    scale = threshold / E4M3_LARGEST
    clipped = np.minimum(values / scale, E4M3_LARGEST)
    exponents = np.maximum(np.frexp(clipped)[1] - 1, E4M3_LEAST_EXPONENT)
    step = np.ldexp(1.0, exponents - E4M3_MANTISSA_BITS)
    on_grid: npt.NDArray[np.float64] = np.minimum(np.rint(clipped / step) * step, E4M3_LARGEST)
    return on_grid * scale


SPELLINGS = "max, percentile:99.99, entropy, mse, mse:fp8"


def observer_named(spelling: str) -> Observer:
    """The rule that a user names: "max", "percentile" (99.99), "percentile:99.9", "entropy", "mse", "mse:fp8".

    Raises:
        InputError: there is no such rule, or its number makes no sense.
    """
    name, _, argument = spelling.partition(":")
    if name == "percentile" and argument:
        try:
            return PercentileObserver(percent=float(argument))
        except ValueError:
            raise InputError(f"observer {spelling!r}: {argument!r} is no number", cure="as percentile:99.9") from None
    plain: dict[str, Observer] = {
        "max": MaxObserver(),
        "percentile": PercentileObserver(),
        "entropy": EntropyObserver(),
        "mse": MseObserver(),
        "mse:int8": MseObserver(),
        "mse:fp8": MseObserver(grid="fp8"),
    }
    if spelling not in plain:
        raise InputError(f"observer {spelling!r}: unknown", cure=f"choose from {SPELLINGS}")
    return plain[spelling]


def observed_range(histogram: Histogram, observer: Observer) -> Range:
    """What of the values an observer keeps: never wider than the values are, on either side."""
    if not histogram.values:
        return Range(low=0.0, high=0.0)
    threshold = observer.threshold(histogram)
    return Range(
        low=min(max(histogram.smallest, -threshold), threshold),
        high=max(min(histogram.largest, threshold), -threshold),
        clipped=histogram.beyond(threshold),
    )
