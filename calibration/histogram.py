"""Count how large activations are, while they pass: exactly, in any order, in a fixed amount of memory.

A histogram has a fixed number of bins over |x|, each 2^e wide. When a larger value comes, e grows and neighbouring
bins are added together. Dividing by a power of two is exact, so the counts depend on the values alone: not on the
order they came in, and not on how they were spread over histograms that were merged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CalibrationError

BINS = 4096
"""The largest value lies in the upper half, so a range is known to 1/2048 of itself or better: INT8 has 127 steps."""

LEAST_EXPONENT = -100
"""Narrowest bin, 2^-100: its inverse is a float32, and whatever lies below is zero to every type we quantise to."""

STRIP = 1 << 18
"""Values counted at a time: 1 MB of float32, which stays in the cache with what is made of it."""


@dataclass(frozen=True, kw_only=True)
class NotFinite:
    """Values that have no place in a histogram."""

    nan: int
    infinite: int
    values: int
    """How many there were in all."""

    def __str__(self) -> str:
        kinds = ((self.nan, "NaN"), (self.infinite, "infinite"))
        return f"{' and '.join(f'{count} {kind}' for count, kind in kinds if count)} of {self.values} values"


class NotFiniteError(CalibrationError):
    """NaN or infinity among the values; `found` counts them."""

    def __init__(self, found: NotFinite) -> None:
        super().__init__(f"{found}", cure="leave the picture out, or see where the graph overflows")
        self.found = found


class Histogram:
    """Counts of |x|, and the smallest and largest x.

    Attributes:
        counts: int64 (bins,); bin i counts i·width <= |x| < (i+1)·width.
        exponent: of the width, 2^exponent.
        smallest: of all values; inf while there is none.
        largest: of all values; -inf while there is none.
    """

    def __init__(self, bins: int = BINS) -> None:
        assert bins.bit_count() == 1, f"{bins} is no power of two"
        self.counts: npt.NDArray[np.int64] = np.zeros(bins, np.int64)
        self.exponent = LEAST_EXPONENT
        self.smallest = math.inf
        self.largest = -math.inf

    @property
    def bins(self) -> int:
        """Number of bins, a power of two."""
        return len(self.counts)

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def values(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def amax(self) -> float:
        """The largest |x|; 0 while there is none."""
        return max(-self.smallest, self.largest, 0.0)

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count an array's values, as float32.

        Raises:
            NotFiniteError: NaN or infinity among them; nothing is counted then.
        """
        if values.size == 0:
            return
        flat = values.reshape(-1)
        if flat.dtype.itemsize > 4:  # rounded before the largest is taken, which decides the width
            flat = flat.astype(np.float32)
        smallest, largest = float(flat.min()), float(flat.max())  # NaN goes through min and max
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            nan = int(np.isnan(flat).sum())
            raise NotFiniteError(NotFinite(nan=nan, infinite=int(np.isinf(flat).sum()), values=flat.size))
        self.smallest, self.largest = min(self.smallest, smallest), max(self.largest, largest)
        self._grow(exponent_for(max(-smallest, largest), self.bins))
        scale = np.float32(math.ldexp(1.0, -self.exponent))
        for first in range(0, flat.size, STRIP):
            strip = flat[first : first + STRIP].astype(np.float32)
            np.abs(strip, out=strip)
            strip *= scale
            self.counts += np.bincount(strip.astype(np.intp), minlength=self.bins)

    def merge(self, other: Histogram) -> None:
        """Count everything that `other` has counted, too; it must have as many bins."""
        assert other.bins == self.bins, (other.bins, self.bins)
        self.smallest, self.largest = min(self.smallest, other.smallest), max(self.largest, other.largest)
        self._grow(other.exponent)
        self.counts += _folded(other.counts, self.exponent - other.exponent)

    def beyond(self, threshold: float) -> float:
        """Share of the values with |x| above the threshold, 0 to 1; a bin it falls into counts in proportion."""
        place = threshold / self.width
        whole = min(math.floor(place), self.bins)
        above = float(self.counts[whole + 1 :].sum())
        if whole < self.bins and threshold < self.amax:
            above += float(self.counts[whole]) * (whole + 1 - place)
        return above / max(self.values, 1)

    def _grow(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _folded(self.counts, exponent - self.exponent)
            self.exponent = exponent

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Histogram)
            and (self.exponent, self.smallest, self.largest) == (other.exponent, other.smallest, other.largest)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Histogram({self.values} values, {self.smallest:.4g} to {self.largest:.4g}, width 2^{self.exponent})"


def exponent_for(amax: float, bins: int) -> int:
    """The least e, not below LEAST_EXPONENT, with amax < bins · 2^e."""
    if amax == 0:
        return LEAST_EXPONENT  # frexp gives 0 the exponent of 1
    # frexp: amax = m · 2^k with 0.5 <= m < 1, so amax < 2^k and no smaller power of two is above it.
    return max(math.frexp(amax)[1] - (bins.bit_length() - 1), LEAST_EXPONENT)


def _folded(counts: npt.NDArray[np.int64], steps: int) -> npt.NDArray[np.int64]:
    """The counts in bins 2^steps as wide."""
    bins = len(counts)
    folded = np.zeros_like(counts)
    if steps >= bins.bit_length():  # all of it in the first bin
        folded[0] = counts.sum()
        return folded
    width = 1 << steps
    folded[: max(bins >> steps, 1)] = counts.reshape(-1, min(width, bins)).sum(axis=1)
    return folded
