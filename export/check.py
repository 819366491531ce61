"""After export, every graph runs in ONNX Runtime and is held against torch: border first, then every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..contract import GraphRecord, sample_axes
from ..errors import BackendError, ExportError, ParityError
from ..runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ..runtime.parity import TOLERANCES, Deviation, deviation
from .graphs import ExportableGraph

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class CheckedGraph:
    """One graph's outcome: torch's outputs and how far ONNX Runtime is from them."""

    expected: dict[str, Array]
    deviations: tuple[Deviation, ...]


def check_graph(
    graph: ExportableGraph, record: GraphRecord, folder: Path, inputs: Mapping[str, Array], *, threads: int | None
) -> CheckedGraph:
    """Run one graph in torch and in ONNX Runtime on the same inputs.

    Args:
        graph: the torch side.
        record: the exported side, its file relative to `folder`.
        inputs: every input of the graph, by name.

    Raises:
        ExportError: ONNX Runtime refuses the graph, or its border is not the contract's.
        ParityError: an output's numbers differ by more than the tolerance.
    """
    with torch.no_grad():
        arguments = [torch.from_numpy(inputs[tensor.name]) for tensor in graph.spec.inputs]
        outputs = graph.module(*arguments)
    if isinstance(outputs, torch.Tensor):
        outputs = (outputs,)
    expected = {
        tensor.name: output.contiguous().numpy() for tensor, output in zip(graph.spec.outputs, outputs, strict=True)
    }
    try:
        with OnnxRuntimeBackend(threads=threads) as backend:
            opened = backend.open(folder / record.file, spec=record.spec, name=graph.label)
            got = backend.run(opened, {tensor.name: inputs[tensor.name] for tensor in graph.spec.inputs})
    except BackendError as error:
        raise ExportError(error.message, cure="report it with the versions `ebseg doctor` prints") from error
    deviations = tuple(_compare(graph.label, name, got[name], expected[name], record) for name in expected)
    return CheckedGraph(expected=expected, deviations=deviations)


def sampled(expected: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """The part of torch's outputs a bundle keeps as reference, as `expected.<output>`."""
    return {
        f"expected.{name}": np.ascontiguousarray(expected[name][sample_axes(expected[name].shape)]) for name in names
    }


def _compare(label: str, name: str, got: Array, expected: Array, record: GraphRecord) -> Deviation:
    if got.shape != expected.shape:
        raise ExportError(f"graph {label}: output {name} has shape {got.shape}, torch gives {expected.shape}")
    if got.dtype != expected.dtype:
        raise ExportError(f"graph {label}: output {name} is {got.dtype}, torch gives {expected.dtype}")
    found = deviation(name, got, expected)
    tolerance = TOLERANCES[record.precision]
    if not found.relative <= tolerance:
        raise ParityError(
            f"graph {label}: {name}: relative deviation {found.relative:.1e} exceeds {tolerance:.0e} "
            f"({record.precision}; largest |Δ| {found.largest:.1e})",
            cure="check the torch, onnxscript and onnxruntime versions against pyproject.toml",
        )
    return found
