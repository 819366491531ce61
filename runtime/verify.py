"""Check a bundle against what PyTorch gave when it was exported: on the device, without PyTorch.

The bundle carries the outputs of every graph for one picture per canvas. The whole chain runs again, each graph on
what the graphs before it gave, and every output is held against its reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..contract import GRAPH_NAMES, GraphName, GraphRecord, ReferenceRecord, Size, sample_axes
from ..errors import BundleError
from .backends.base import Backend
from .bundle import Bundle
from .parity import CHAIN_TOLERANCES, QUERY_OUTPUTS, TOLERANCES, deviation

Array = npt.NDArray[Any]
EXPECTED = "expected."
"""Before an output's name, in a reference."""


OWN_TOLERANCES: Mapping[str, tuple[float, float]] = {
    "fp32": (2e-4, 5e-3),
    "fp16": (1e-2, 0.2),
    "bf16": (8e-2, 0.35),
    "int8": (0.1, 0.3),
    "fp8": (0.1, 0.3),
}
"""Type -> what one graph may deviate from its own numbers elsewhere, and what the end of the chain may.

Twice what ONNX Runtime's own optimisations move EBSeg-nano by, and more than they move a seeded EBSeg-B (INT8: 0.04 and
0.23). GridSample with the nearest point moves nano's chain by 0.6 in every type.
"""


@dataclass(frozen=True, kw_only=True)
class VerifiedOutput:
    """One output of one graph on one canvas."""

    graph: GraphName
    size: Size
    precision: str
    output: str
    largest: float
    """Largest |difference|."""
    relative: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.relative <= self.tolerance


def verify_bundle(
    bundle: Bundle, backend: Backend, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[VerifiedOutput]:
    """Run every graph of every size and precision on the bundle's reference pictures.

    Args:
        bundle: opened with its hashes checked.
        backend: what to run the graphs with.

    Returns:
        One entry per output; the caller decides what to do with those that did not pass.

    Raises:
        BundleError: the bundle carries no references, or one cannot be read.
        BackendError: a graph cannot be opened or run.
    """
    references = [each for each in bundle.manifest.references if each.precision is None]
    if not references:
        raise BundleError(f"bundle {bundle.source}: no references to verify against", cure="export it again")
    total = len(references) * len(bundle.precisions) * len(GRAPH_NAMES)
    outputs: list[VerifiedOutput] = []
    done = 0
    for reference in references:
        tensors = read_reference(bundle, reference)
        for precision in bundle.precisions:
            for found in _run_chain(bundle, backend, reference.size, precision, tensors):
                outputs += found
                done += 1
                progress(done, total)
    return outputs


def read_reference(bundle: Bundle, reference: ReferenceRecord) -> dict[str, Array]:
    """Tensors of one of a bundle's references: inputs by name, and `expected.<output>`, sampled.

    Raises:
        BundleError: the file cannot be read.
    """
    path = bundle.file(reference.file)
    try:
        tensors: dict[str, Array] = load_file(path)
        return tensors
    except (SafetensorError, OSError) as error:
        raise BundleError(f"bundle {bundle.source}: {reference.file}: {error}", cure="export it again") from error


def reference_inputs(reference: Mapping[str, Array]) -> dict[str, Array]:
    """Of a reference's tensors, from `read_reference`, those that graphs are given: the expected outputs left out."""
    return {name: array for name, array in reference.items() if not name.startswith(EXPECTED)}


def _run_chain(
    bundle: Bundle, backend: Backend, size: Size, precision: str, reference: dict[str, Array]
) -> Iterator[list[VerifiedOutput]]:
    """One graph after another, opened and closed in turn: no more memory than the largest needs."""
    tensors = reference_inputs(reference)
    for name in GRAPH_NAMES:
        record = bundle.graph(name, size, precision)
        graph = backend.open(backend.graph_file(bundle, record), spec=record.spec, name=name)
        try:
            got = backend.run(graph, {tensor.name: tensors[tensor.name] for tensor in record.spec.inputs})
            tf32 = backend.loaded(graph).tf32
        finally:
            backend.close(graph)
        tensors.update(got)
        yield [
            judge(name, size, precision, output, array, reference, allowed=tolerance(output, precision, tf32=tf32))
            for output, array in got.items()
        ]


def judge(
    graph: GraphName,
    size: Size,
    precision: str,
    output: str,
    array: Array,
    reference: Mapping[str, Array],
    *,
    allowed: float,
) -> VerifiedOutput:
    """Hold an output against its reference.

    Args:
        graph: whose output it is.
        size: canvas of the reference.
        precision: of the graph.
        output: its name.
        array: the whole output.
        reference: from `read_reference`.
        allowed: relative deviation; see `tolerance` and `own_tolerance`.
    """
    expected = reference[EXPECTED + output]
    found = deviation(output, np.asarray(array)[sample_axes(array.shape)], expected)
    return VerifiedOutput(
        graph=graph,
        size=size,
        precision=precision,
        output=output,
        largest=found.largest,
        relative=found.relative,
        tolerance=allowed,
    )


def tolerance(output: str, precision: str, *, tf32: bool = False) -> float:
    """Relative deviation that an output of the chain may have.

    Args:
        output: its name.
        precision: of the graph.
        tf32: FP32 products are computed in TF32, whose mantissa is as long as FP16's: as much is allowed as of FP16.

    Raises:
        BundleError: nothing is known of the precision.
    """
    table = CHAIN_TOLERANCES if output in QUERY_OUTPUTS else TOLERANCES
    if precision not in table:
        raise BundleError(
            f"precision {precision!r}: no tolerance is known for it", cure=f"verify one of {', '.join(table)}"
        )
    return max(table[precision], table.get("fp16", 0.0)) if tf32 else table[precision]


def own_tolerance(output: str, records: Iterable[GraphRecord]) -> float:
    """Relative deviation from what the graphs themselves gave in ONNX Runtime: the same roundings, in another order.

    Args:
        output: its name.
        records: of the graphs that have a part in it; the coarsest decides.
    """
    place = int(output in QUERY_OUTPUTS)
    computes = [record.compute for record in records]
    kinds = ["fp32" if each is None else each.quantised or each.base for each in computes]
    return max(OWN_TOLERANCES[kind][place] for kind in kinds)
