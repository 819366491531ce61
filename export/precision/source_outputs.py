"""What the FP32 graphs give for a bundle's reference pictures; each is run once, whoever asks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...contract import GraphRecord, GraphSpec, Size
from ...errors import BackendError, BundleError, ExportError
from ...runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ...runtime.bundle import Bundle
from ...runtime.verify import read_reference, reference_inputs
from .float_types import Array


class SourceOutputs:
    """Inputs and outputs of the FP32 graphs; ask for graph after graph, in the order of contract.GRAPH_NAMES.

    Args:
        bundle: the FP32 bundle.
        threads: for ONNX Runtime.

    Raises:
        BundleError: the bundle carries no references, or one cannot be read.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None) -> None:
        references = bundle.manifest.references
        if not references:
            raise BundleError(f"bundle {bundle.source}: no references to check against", cure="export it again")
        self.bundle = bundle
        self.threads = threads
        self._tensors: dict[Size, dict[str, Array]] = {
            each.size: reference_inputs(read_reference(bundle, each)) for each in references
        }

    def inputs(self, record: GraphRecord) -> dict[str, Array]:
        """What the FP32 graphs before this one hand to it."""
        tensors = self._on(record)
        return {tensor.name: tensors[tensor.name] for tensor in record.spec.inputs}

    def outputs(self, record: GraphRecord) -> dict[str, Array]:
        """What the FP32 graph gives for them.

        Raises:
            ExportError: ONNX Runtime refuses the graph.
        """
        tensors = self._on(record)
        if any(tensor.name not in tensors for tensor in record.spec.outputs):
            file = self.bundle.file(record.file)
            tensors.update(
                run_graph(file, self.inputs(record), name=record.name, spec=record.spec, threads=self.threads)
            )
        return {tensor.name: tensors[tensor.name] for tensor in record.spec.outputs}

    def _on(self, record: GraphRecord) -> dict[str, Array]:
        # A graph that serves every size is checked on the first; the references hold what it gave on the others.
        return self._tensors[record.size or next(iter(self._tensors))]


def run_graph(
    file: Path, inputs: Mapping[str, Array], *, name: str, spec: GraphSpec | None, threads: int | None
) -> dict[str, Array]:
    """Run a graph once in ONNX Runtime.

    Args:
        file: the .onnx file.
        inputs: by name.
        name: what to call the graph in errors.
        spec: the border it must have; None if that is its own affair.
        threads: for ONNX Runtime.

    Raises:
        ExportError: ONNX Runtime refuses it.
    """
    try:
        with OnnxRuntimeBackend(threads=threads) as backend:
            return backend.run(backend.open(file, spec=spec, name=name), inputs)
    except BackendError as error:
        raise ExportError(error.message, cure="report it with the versions `ebseg doctor` prints") from error
