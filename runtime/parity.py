"""How far a graph's numbers are from PyTorch's, and how far they may be.

The deviation of a tensor is the largest |difference| over the largest |reference|. Outputs with one row per query are
judged row by row and the worst rows are left out: a mask logit within rounding of zero may fall on either side, which
moves the pooled embeddings of a small mask, and nothing is wrong with the graph. A graph that *is* wrong is wrong in
most rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

QUERY_OUTPUTS = frozenset({"mask_logits", "embeddings_a", "embeddings_b", "embeddings_d", "class_probabilities"})
"""Outputs whose second axis counts queries."""

ROWS_LEFT_OUT = 0.05

TOLERANCES: Mapping[str, float] = {
    "fp32": 2e-4,
    "fp16": 1e-2,
    "bf16": 8e-2,
    "int8": 0.3,
    "int8-linear": 0.3,
    "int8-all": 1.0,
    "fp8": 0.3,
    "int8-cpu": 0.3,
}
"""Relative deviation allowed of one graph on PyTorch's own inputs, by the graph's precision.

Measured at most, rounded as a GPU would: fp16 2.1e-3 (EBSeg-B's SAM), bf16 1.9e-2 (nano's text encoder).
"""

CHAIN_TOLERANCES: Mapping[str, float] = {
    "fp32": 5e-3,
    "fp16": 0.25,
    "bf16": 0.5,
    "int8": 1.0,
    "int8-linear": 1.0,
    "int8-all": 2.0,
    "fp8": 1.0,
    "int8-cpu": 1.0,
}
"""The same at the end of the chain, where rounding of the encoders has passed through nine rounds of hard masks."""


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How one output differs from its reference."""

    name: str
    largest: float
    """Largest |difference|, all rows. NaN counts as infinite."""
    relative: float
    """What is judged; see the module's text."""


def deviation(name: str, got: np.ndarray, reference: np.ndarray) -> Deviation:
    """Compare two arrays of one shape, (B, Q, …) for an output with queries."""
    scale = float(np.abs(reference).max(initial=0.0)) or 1.0
    difference = np.abs(got.astype(np.float64) - reference)
    difference = np.where(np.isfinite(difference), difference, math.inf)
    largest = float(difference.max(initial=0.0))
    judged = largest
    if name in QUERY_OUTPUTS and difference.ndim > 2:
        rows = np.sort(difference.reshape(math.prod(difference.shape[:2]), -1).max(axis=1))
        judged = float(rows[max(0, math.ceil(len(rows) * (1 - ROWS_LEFT_OUT)) - 1)])
    return Deviation(name=name, largest=largest, relative=judged / scale)
