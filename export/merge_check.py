"""A merged graph held against the graphs it is made of, in ONNX Runtime, on random pixels and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..contract import MERGED, GraphRecord, GraphSpec
from ..errors import BackendError, ExportError, ParityError
from ..runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ..runtime.bundle import Bundle
from ..runtime.parity import CHAIN_TOLERANCES, deviation

WIRE_TOLERANCE = 1e-2
"""Relative deviation allowed of every tensor between the parts, and of the results, where next to nothing rounds
otherwise: no cast is left out, all borders are outputs, and ONNX Runtime optimises nothing.

Measured on nano in FP16, INT8 and FP8: 0, but 2e-4 of embeddings_b and the probabilities where a decoder of opset 18
takes over its encoders' 19, for which ONNX Runtime has other kernels in half precision. Two tensors of one shape that
are swapped are off by 0.2 to 1."""

FP32_TOLERANCE = 1e-4
"""The same for the results of an FP32 graph that ONNX Runtime optimises; measured: 0 and 1e-7."""


def result_tolerance(precision: str) -> float:
    """The same for a graph whose casts at the borders are left out, as ONNX Runtime optimises it.

    Outside FP32 that of the chain from FP32: ONNX Runtime on a CPU has few kernels in half precision, computes between
    casts instead, and leaves out those that meet, which are others once the borders are gone. Measured on nano: 3e-3 at
    most in FP16, INT8 and FP8, 0.3 in int8-all. A swapped wire may pass here; it does not pass WIRE_TOLERANCE.
    """
    return FP32_TOLERANCE if precision == "fp32" else CHAIN_TOLERANCES.get(precision, 0.25)


def hold_against_parts(
    bundle: Bundle,
    records: Sequence[GraphRecord],
    file: Path,
    spec: GraphSpec,
    *,
    tolerance: float,
    optimise: bool,
    threads: int | None,
) -> dict[str, float]:
    """Run a merged graph and its parts, one after the other, and compare.

    Args:
        bundle: has the parts.
        records: the parts, in the order in which they run.
        file: the merged graph.
        spec: its border; every output is compared.
        tolerance: relative deviation allowed of each.
        optimise: let ONNX Runtime rewrite the graphs, both the merged one and the parts.
        threads: for ONNX Runtime.

    Returns:
        Largest |difference| of each output.

    Raises:
        ExportError: ONNX Runtime refused one of them.
        ParityError: an output differs.
    """
    tensors = _inputs(spec)
    try:
        with OnnxRuntimeBackend(threads=threads, optimise=optimise) as backend:
            merged = backend.open(file, spec=spec, name=MERGED)
            got = backend.run(merged, dict(tensors))
        for record in records:
            with OnnxRuntimeBackend(threads=threads, optimise=optimise) as backend:
                part = backend.open(bundle.file(record.file), spec=record.spec, name=record.name)
                tensors |= backend.run(part, {each.name: tensors[each.name] for each in record.spec.inputs})
    except BackendError as error:
        raise ExportError(error.message, cure="report it with the versions `ebseg doctor` prints") from error
    found: dict[str, float] = {}
    for output in spec.outputs:
        difference = deviation(output.name, got[output.name], tensors[output.name])
        if not difference.relative <= tolerance:
            raise ParityError(
                f"merged graph: {output.name}: relative deviation {difference.relative:.1e} from its parts exceeds "
                f"{tolerance:.0e} ({records[0].precision}; largest |Δ| {difference.largest:.1e})",
                cure="report it with the versions `ebseg doctor` prints; the single graphs are not affected",
            )
        found[output.name] = difference.largest
    return found


def _inputs(spec: GraphSpec) -> dict[str, np.ndarray]:
    """Random pixels and words: 5 classes and the background, one picture where the batch is dynamic."""
    lengths: Mapping[str, int] = {"batch": 1, "classes": 5, "classes_and_background": 6}
    shapes = {
        tensor.name: [lengths[each] if isinstance(each, str) else each for each in tensor.shape]
        for tensor in spec.inputs
    }
    random = np.random.default_rng(0)
    words = random.normal(size=shapes["text_embeddings"]).astype(np.float32)
    height, width = shapes["image"][2:]
    return {
        "image": random.integers(0, 256, size=shapes["image"], dtype=np.uint8),
        "valid_size": np.full(shapes["valid_size"], [height, width], dtype=np.int32),
        "text_embeddings": words / np.linalg.norm(words, axis=1, keepdims=True),
        "seen": (np.arange(shapes["seen"][0]) % 2).astype(np.float32),
    }
