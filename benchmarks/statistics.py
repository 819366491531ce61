"""Latencies, summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError


@dataclass(frozen=True, kw_only=True)
class LatencySummary:
    """Milliseconds. Percentiles are interpolated linearly; with n runs, p99 is near the slowest until n is 100."""

    runs: int
    mean_ms: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, latencies_ms: Sequence[float]) -> LatencySummary:
        """Sum up measured latencies; at least one."""
        if len(latencies_ms) == 0:
            raise InputError("no latency was measured", cure="give --repeats 1 or more")
        values = np.asarray(latencies_ms, dtype=np.float64)
        p50, p90, p99 = np.percentile(values, (50, 90, 99))
        return cls(
            runs=len(values),
            mean_ms=float(values.mean()),
            min_ms=float(values.min()),
            p50_ms=float(p50),
            p90_ms=float(p90),
            p99_ms=float(p99),
            max_ms=float(values.max()),
        )
