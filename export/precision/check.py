"""Every derived graph runs in ONNX Runtime and is held against its FP32 form on the bundle's reference pictures.

Each graph is judged alone: it gets what the FP32 graphs before it give, so that a deviation is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...contract import GraphRecord
from ...errors import ParityError
from ...runtime.parity import deviation
from ...runtime.verify import tolerance
from .emulate import emulated_beside, rounds_little
from .float_types import Array
from .overflow import watch_largest
from .source_outputs import SourceOutputs, run_graph


class DerivedCheck:
    """Call it with graph after graph, in the order of contract.GRAPH_NAMES.

    Args:
        source: what the FP32 graphs give.
        folder: the bundle in the making.
    """

    def __init__(self, source: SourceOutputs, folder: Path) -> None:
        self._source = source
        self._folder = folder

    def __call__(self, source: GraphRecord, made: GraphRecord) -> dict[str, float]:
        """Check one graph.

        Args:
            source: the FP32 graph.
            made: the derived one, its file relative to the folder.

        Returns:
            Output name -> largest |difference|. Of a half-precision graph, the emulated form's: ONNX Runtime rounds
            little of it on a CPU.

        Raises:
            ExportError: ONNX Runtime refuses the graph.
            ParityError: an output is further from FP32's than the precision explains.
        """
        inputs, expected = self._source.inputs(source), self._source.outputs(source)
        compute = made.compute
        assert compute is not None
        file = self._folder / made.file
        largest: dict[str, float] = {}
        if compute.base != "bf16" or compute.emulated:
            largest = self._judge(made, self._run(made, file, inputs), expected)
        if rounds_little(compute):
            with emulated_beside(file) as emulated:
                got = self._run(made, emulated, inputs)
            if not all(np.isfinite(array).all() for array in got.values()):
                self._name_overflow(made, file, inputs)
            largest = self._judge(made, got, expected)
        return largest

    def _run(
        self, made: GraphRecord, file: Path, inputs: Mapping[str, Array], *, border: bool = True
    ) -> dict[str, Array]:
        spec = made.spec if border else None
        return run_graph(file, inputs, name=made.name, spec=spec, threads=self._source.threads)

    def _name_overflow(self, made: GraphRecord, file: Path, inputs: Mapping[str, Array]) -> None:
        watched: dict[str, str] = {}
        with emulated_beside(file, lambda model: watched.update(watch_largest(model))) as emulated:
            largest = self._run(made, emulated, inputs, border=False)
        node = next((node for name, node in watched.items() if not np.isfinite(largest[name]).all()), None)
        if node is not None:
            raise ParityError(
                f"graph {made.name}: node {node} overflows in {made.precision}", cure=f"add --keep '{node}'"
            )

    def _judge(self, made: GraphRecord, got: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, float]:
        largest = {}
        for name, reference in expected.items():
            found = deviation(name, got[name], reference)
            allowed = tolerance(name, made.precision)
            if not found.relative <= allowed:
                raise ParityError(
                    f"graph {made.name}: {name}: relative deviation {found.relative:.1e} from FP32 exceeds "
                    f"{allowed:.0e} ({made.precision}; largest |Δ| {found.largest:.1e})",
                    cure="keep more of it in FP32 with --keep PATTERN; see docs/how-to/precision.md",
                )
            largest[name] = found.largest
        return largest
