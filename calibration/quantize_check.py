"""Whether a quantised graph still says what its FP32 form says: the cosine of each output, on the reference picture.

The cosine is what the quantised networks' literature and engines' tools report. It sees what a wrong scale does (a
clipped or a coarse activation turns the features) and overlooks the many small roundings that a right one leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..contract import GraphName, GraphRecord, Size
from ..errors import ParityError
from ..export.precision.source_outputs import SourceOutputs, run_graph

Array = npt.NDArray[Any]

LEAST_COSINE = 0.99
"""Of an encoder's output. Measured with right scales: 0.9992 and more of EBSeg-B, 0.9996 of nano. With one scale of the
first block 32 times too large or too small: below 0.98 where that activation matters at all."""


@dataclass(frozen=True, kw_only=True)
class GraphCosines:
    """How far a quantised graph's outputs point where the FP32 graph's do."""

    graph: GraphName
    size: Size | None
    outputs: dict[str, float]
    """Output name -> cosine between the two, flattened; 1 if both are zero."""


def cosine(first: Array, second: Array) -> float:
    """Cosine between two arrays of one shape; 1 if both are zero, NaN if a number is not finite."""
    a, b = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    if not a.any() and not b.any():
        return 1.0
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), np.finfo(np.float64).tiny))


def measure_cosines(source: SourceOutputs, record: GraphRecord, quantised: ir.Model, scratch: Path) -> GraphCosines:
    """Run a graph in both forms; the decoder gets what FP32 encoders give.

    Args:
        source: what the FP32 graphs give; graph after graph, in the order of contract.GRAPH_NAMES.
        record: of the FP32 graph.
        quantised: its quantised form, not lowered.
        scratch: a folder that may be written to.

    Raises:
        ParityError: an output's cosine is not a number.
        ExportError: ONNX Runtime refuses a graph.
    """
    inputs, expected = source.inputs(record), source.outputs(record)
    file = scratch / f".{record.name}.quantised.onnx"
    weights = file.with_suffix(".weights")
    try:
        ir.save(quantised, file, external_data=weights.name)
        got = run_graph(file, inputs, name=record.name, spec=record.spec, threads=source.threads)
    finally:
        file.unlink(missing_ok=True)
        weights.unlink(missing_ok=True)
    outputs = {name: cosine(got[name], array) for name, array in expected.items()}
    for name, found in outputs.items():
        if not np.isfinite(found):
            raise ParityError(
                f"graph {record.name}: {name} is not finite after quantisation", cure="calibrate the graph again"
            )
    return GraphCosines(graph=record.name, size=record.size, outputs=outputs)


def check_cosines(found: GraphCosines) -> None:
    """Raises ParityError if an output's cosine is below LEAST_COSINE."""
    name, least = min(found.outputs.items(), key=lambda item: item[1])
    if least < LEAST_COSINE:
        raise ParityError(
            f"graph {found.graph}: {name}: cosine {least:.4f} with FP32, wanted {LEAST_COSINE} or more",
            cure="calibrate on pictures like those it will see, keep more with --keep PATTERN, or another --observer",
        )
