"""A backend that runs nothing: canned or seeded outputs of the right names, types and shapes.

For tests, ours and users': a whole `Segmenter` runs with it in milliseconds, without an execution engine.

    backend = FakeBackend(outputs={"open_vocab_head": {"class_probabilities": probabilities}})
    segmenter = Segmenter.load("b.ebseg", backend=backend)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...contract import GraphSpec, TensorSpec
from ...errors import BackendError
from ..gpu_host import GpuHost
from .base import Array, Backend, OpenGraph
from .tensor_checks import check_tensors

Outputs = Mapping[str, Array]
Canned = Mapping[str, Outputs | Callable[[Mapping[str, Array]], Outputs]]
"""Graph name -> its outputs by name, or a function that makes them from the inputs."""


class FakeBackend(Backend):
    """Gives back what it was told to, and seeded uniform values in [0, 1) for the rest.

    Args:
        outputs: canned outputs; an output that is not named here is seeded.
        seed: seeds the rest; the same seed, graph and output name give the same values.
        reason: why this backend was picked.
        host: a GPU to pretend to run on; the sentinel then checks what it gives.

    Attributes:
        calls: the graphs that ran, in order, with their inputs.
    """

    def __init__(
        self,
        outputs: Canned | None = None,
        *,
        seed: int = 0,
        reason: str = "asked for by name",
        host: GpuHost | None = None,
    ) -> None:
        super().__init__("fake", reason=reason)
        self._canned = {} if outputs is None else outputs
        self._seed = seed
        self._host = host
        self.calls: list[tuple[str, dict[str, Array]]] = []

    def gpu_host(self) -> GpuHost | None:
        return self._host

    def _open_impl(self, file: Path, name: str, spec: GraphSpec | None) -> tuple[Any, GraphSpec]:
        if not file.is_file():
            raise BackendError(f"graph {name}: no file {file}", cure="give the path of an .onnx file")
        if spec is None:
            raise BackendError(f"graph {name}: the fake backend reads no files", cure="give `spec`")
        return None, spec

    def _run_impl(self, graph: OpenGraph, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.calls.append((graph.name, dict(inputs)))
        canned = self._canned.get(graph.name, {})
        given = canned(inputs) if callable(canned) else canned
        lengths = check_tensors(graph.name, graph.spec.inputs, inputs)
        return {tensor.name: self._output(graph, tensor, given, lengths) for tensor in graph.spec.outputs}

    def _output(self, graph: OpenGraph, tensor: TensorSpec, given: Outputs, lengths: Mapping[str, int]) -> Array:
        if tensor.name in given:
            # Checked as strictly as an input: a canned output that no engine could give would test nothing.
            array = given[tensor.name]
            check_tensors(graph.name, (tensor,), {tensor.name: array}, side="output", lengths=lengths)
            return array
        unknown = [each for each in tensor.shape if isinstance(each, str) and each not in lengths]
        if unknown:
            raise BackendError(
                f"graph {graph.name}: output {tensor.name} has dimension {unknown[0]}, which no input has",
                cure="give this output to FakeBackend(outputs=…)",
            )
        shape = tuple(lengths[each] if isinstance(each, str) else each for each in tensor.shape)
        seed = (self._seed, zlib.crc32(graph.name.encode()), zlib.crc32(tensor.name.encode()))
        values = np.random.default_rng(seed).random(shape, dtype=np.float32)
        scale = 256 if tensor.dtype in ("uint8", "int32") else 1
        return (values * scale).astype(tensor.dtype)
