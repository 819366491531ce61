"""What every execution engine can do: open a graph, say its specs, run it, close it.

The public methods check; the `_impl` methods work. A new backend writes `_open_impl`, `_run_impl` and, if closing
takes more than forgetting, `_close_impl`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...contract import GraphRecord, GraphSpec
from ...errors import BackendError
from .tensor_checks import check_border, check_tensors

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..gpu_host import GpuHost

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class ResidentTensor:
    """A tensor where its engine keeps it; `Backend.fetch` brings it to the host."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    value: Any
    """The engine's own object."""


Tensor = Array | ResidentTensor


@dataclass(frozen=True, kw_only=True)
class LoadedGraph:
    """What an engine really loaded for a graph, where that is more than the bundle's file."""

    sha256: str = ""
    """Of a plan, or of what tells the engines in a provider's cache folder from others; empty when the bundle's own
    file was loaded, which the bundle's seal covers."""
    tf32: bool = False
    """Whether FP32 products are computed in TF32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenGraph:
    """A graph that a backend has opened; hand it back to the backend that made it."""

    name: str
    """What the graph is called in errors and, with the fake backend, in its outputs."""
    file: Path
    spec: GraphSpec
    session: Any
    """The engine's own object."""


class Backend(ABC):
    """An execution engine. `run` may be called from several threads at once.

    Attributes:
        name: how `open_backend` calls it: "onnxruntime", "onnxruntime:cuda", "fake".
        reason: why this one was picked, for people.
        settings: what the user told the engine, on one line; the numbers may depend on it.
    """

    settings: str = ""

    def __init__(self, name: str, *, reason: str = "asked for by name") -> None:
        self.name = name
        self.reason = reason
        self._graphs: list[OpenGraph] = []

    def graph_file(self, bundle: Bundle, record: GraphRecord) -> Path:
        """The file to `open` for one of a bundle's graphs: its .onnx file, or what this engine reads instead."""
        return bundle.file(record.file)

    def open(
        self, file: str | os.PathLike[str], *, spec: GraphSpec | None = None, name: str | None = None
    ) -> OpenGraph:
        """Load a graph and make it ready to run.

        Args:
            file: an .onnx file, or what else this engine reads.
            spec: the border the graph must have, as a bundle's manifest gives it; not checked if None.
            name: what to call it; the file's stem by default.

        Raises:
            BackendError: the file is missing, the engine refuses it, or its border is not `spec`.
        """
        path = Path(file)
        name = path.stem if name is None else name
        session, found = self._open_impl(path, name, spec)
        graph = OpenGraph(name=name, file=path, spec=found, session=session)
        if spec is not None:
            try:
                check_border(name, path, found, spec)
            except BackendError:
                self._close_impl(graph)
                raise
        self._graphs.append(graph)
        return graph

    def specs(self, graph: OpenGraph) -> GraphSpec:
        """Names, types and shapes of the graph's inputs and outputs; a dynamic length is a name."""
        self._check_open(graph)
        return graph.spec

    def run(self, graph: OpenGraph, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a graph once.

        Args:
            graph: what `open` gave.
            inputs: one array for each of the graph's inputs, by name.

        Returns:
            One array for each of the graph's outputs, by name.

        Raises:
            BackendError: an input is missing, unexpected, or of another type or shape than the graph's; a dynamic
                length differs between two inputs; or the engine failed.
        """
        self._check_open(graph)
        check_tensors(graph.name, graph.spec.inputs, inputs)
        return self._run_impl(graph, inputs)

    def run_resident(self, graph: OpenGraph, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `run`, but outputs stay where the engine keeps them; inputs may be such outputs of this backend.

        So a chain of graphs needs no copy to the host and back between them. An engine that keeps nothing gives and
        takes host arrays.
        """
        self._check_open(graph)
        check_tensors(graph.name, graph.spec.inputs, {name: _outline(tensor) for name, tensor in inputs.items()})
        return self._run_resident_impl(graph, inputs)

    def upload(self, tensors: Mapping[str, Array]) -> dict[str, Tensor]:
        """Host arrays where the engine wants them, for several runs; an engine that keeps nothing gives them back."""
        return dict(tensors)

    def fetch(self, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        """Host arrays of what `run_resident` gave."""
        return {
            name: self._fetch_impl(each) if isinstance(each, ResidentTensor) else each for name, each in tensors.items()
        }

    def gpu_host(self) -> GpuHost | None:
        """The GPU this engine runs on, for the sentinel (`sentinel.py`); None for a CPU."""
        return None

    def loaded(self, graph: OpenGraph) -> LoadedGraph:
        """What was loaded for an open graph."""
        self._check_open(graph)
        return LoadedGraph()

    def takes(self, graph: OpenGraph, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether inputs of these shapes fit what the graph was built for; engines have profiles."""
        self._check_open(graph)
        return True

    def close(self, graph: OpenGraph | None = None) -> None:
        """Let go of one graph, or of all of them. Closing twice does nothing."""
        for each in [g for g in self._graphs if graph is None or g is graph]:
            self._graphs.remove(each)
            self._close_impl(each)

    def __enter__(self) -> Backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self._graphs)} graphs open)"

    def _check_open(self, graph: OpenGraph) -> None:
        if not any(graph is each for each in self._graphs):
            raise BackendError(f"graph {graph.name}: not open in backend {self.name}", cure="open it with this backend")

    @abstractmethod
    def _open_impl(self, file: Path, name: str, spec: GraphSpec | None) -> tuple[Any, GraphSpec]:
        """Load the file; give the engine's object and the border the graph really has."""

    @abstractmethod
    def _run_impl(self, graph: OpenGraph, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run with inputs that were checked."""

    def _run_resident_impl(self, graph: OpenGraph, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `_run_impl`, leaving tensors where they are."""
        return dict(self._run_impl(graph, self.fetch(inputs)))

    def _fetch_impl(self, tensor: ResidentTensor) -> Array:
        """A host array of a tensor this backend keeps."""
        raise BackendError(f"backend {self.name}: a tensor of another backend", cure="fetch it with the one it is of")

    def _close_impl(self, graph: OpenGraph) -> None:
        """Free what `_open_impl` took."""
        return None


def _outline(tensor: Tensor) -> Any:
    """Something with a tensor's type and shape for `check_tensors`; takes no memory."""
    return np.broadcast_to(np.empty((), tensor.dtype), tensor.shape) if isinstance(tensor, ResidentTensor) else tensor
