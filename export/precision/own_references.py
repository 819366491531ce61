"""What a derived bundle's own graphs give for the reference pictures, kept beside what PyTorch gave.

A device is to compute what the graphs say, and a sentinel has to tell a wrong engine from a coarse recipe. Measured on
EBSeg-nano in INT8: the recipe moves the decoder's outputs by 4 to 37 % of their largest value, and GridSample with the
nearest point in place of bilinear sampling by 21 to 56 %; no bound against PyTorch lies between. From what ONNX Runtime
gives for the same INT8 graphs, another order of computation moves them by 2 to 12 %.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from safetensors.numpy import save

from ...contract import GraphRecord, ReferenceRecord, Size, sample_axes
from ...errors import BackendError, ExportError
from ...runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ...runtime.bundle import Bundle
from ...runtime.verify import EXPECTED, read_reference, reference_inputs
from .emulate import emulated_beside, rounds_little
from .float_types import Array


class OwnReferences:
    """Runs the chain of derived graphs on the reference pictures, a graph at a time.

    Args:
        bundle: the FP32 bundle, whose references give the pictures.
        folder: the bundle in the making.
        precision: the derived graphs'.
        threads: for ONNX Runtime.
    """

    def __init__(self, bundle: Bundle, folder: Path, precision: str, *, threads: int | None) -> None:
        self._folder = folder
        self._precision = precision
        self._threads = threads
        self._tensors: dict[Size, dict[str, Array]] = {}
        self._kept: dict[Size, dict[str, Array]] = {}
        for reference in bundle.manifest.references:
            inputs = reference_inputs(read_reference(bundle, reference))
            self._tensors[reference.size], self._kept[reference.size] = inputs, dict(inputs)

    def add(self, made: GraphRecord) -> None:
        """Run one graph on what the graphs before it gave; call it in the order of contract.GRAPH_NAMES.

        Raises:
            ExportError: ONNX Runtime refuses the graph.
        """
        file = self._folder / made.file
        emulate = made.compute is not None and rounds_little(made.compute)
        try:
            with (
                emulated_beside(file) if emulate else nullcontext(file) as runnable,
                OnnxRuntimeBackend(threads=self._threads) as backend,
            ):
                graph = backend.open(runnable, spec=made.spec, name=made.name)
                for size in [made.size] if made.size else list(self._tensors):
                    tensors = self._tensors[size]
                    found = backend.run(graph, {each.name: tensors[each.name] for each in made.spec.inputs})
                    tensors.update(found)
                    self._kept[size].update(
                        {f"{EXPECTED}{name}": array[sample_axes(array.shape)].copy() for name, array in found.items()}
                    )
        except BackendError as error:
            raise ExportError(error.message, cure="report it with the versions `ebseg doctor` prints") from error

    def write(self) -> tuple[ReferenceRecord, ...]:
        """Write the files, and give their records."""
        records = []
        for size, tensors in self._kept.items():
            file = f"references/{size}.{self._precision}.safetensors"
            (self._folder / file).write_bytes(save(tensors))
            records.append(ReferenceRecord(size=size, file=file, precision=self._precision))
        return tuple(records)
