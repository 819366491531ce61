"""A backend around a backend: it notes how long every run takes, and can keep what a run was given."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import GraphRecord, GraphSpec
from ..runtime.backends import Backend, LoadedGraph, OpenGraph, Tensor
from ..runtime.bundle import Bundle
from ..runtime.gpu_host import GpuHost

Array = npt.NDArray[Any]


class TimedBackend(Backend):
    """Runs graphs with another backend and times them.

    Args:
        inner: the backend that works. It is closed with this one.

    Attributes:
        latencies_ms: graph name -> time of each run, in milliseconds, in order.
        kept_inputs: graph name -> inputs of its last run while `keep_inputs` was on.
        keep_inputs: off by default, so that measuring memory is not disturbed.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner.name, reason=inner.reason)
        self.settings = inner.settings
        self.inner = inner
        self.latencies_ms: dict[str, list[float]] = defaultdict(list)
        self.kept_inputs: dict[str, dict[str, Array]] = {}
        self.keep_inputs = False

    def graph_file(self, bundle: Bundle, record: GraphRecord) -> Path:
        return self.inner.graph_file(bundle, record)

    def gpu_host(self) -> GpuHost | None:
        return self.inner.gpu_host()

    def loaded(self, graph: OpenGraph) -> LoadedGraph:
        self._check_open(graph)
        return self.inner.loaded(graph.session)

    def takes(self, graph: OpenGraph, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        self._check_open(graph)
        return self.inner.takes(graph.session, shapes)

    def _open_impl(self, file: Path, name: str, spec: GraphSpec | None) -> tuple[Any, GraphSpec]:
        graph = self.inner.open(file, spec=spec, name=name)
        return graph, self.inner.specs(graph)

    def _run_impl(self, graph: OpenGraph, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.fetch(self._run_resident_impl(graph, inputs))

    def _run_resident_impl(self, graph: OpenGraph, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.keep_inputs:
            self.kept_inputs[graph.name] = {name: np.array(value) for name, value in self.fetch(inputs).items()}
        start = time.perf_counter()
        outputs = self.inner.run_resident(graph.session, inputs)
        # list.append is atomic: the two image encoders run in threads of their own
        self.latencies_ms[graph.name].append((time.perf_counter() - start) * 1000)
        return outputs

    def upload(self, tensors: Mapping[str, Array]) -> dict[str, Tensor]:
        return self.inner.upload(tensors)

    def fetch(self, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        return self.inner.fetch(tensors)

    def _close_impl(self, graph: OpenGraph) -> None:
        self.inner.close(graph.session)
