"""A GPU's first run of a bundle is held against the bundle's own reference.

Engines can be silently wrong: built without a warning, they run, and the labels are nonsense (`known_bad.py`). So the
first time that a plan meets a GPU, a driver and a TensorRT release, the picture that the bundle carries runs through
them, and every output is held against what PyTorch gave for it. Engines that disagree are refused. A pass is
remembered in the user's cache; anything it depends on is part of its name, so it never has to be taken back.

The CPU has no sentinel: there the tests of this project hold the numbers, and `ebseg verify` checks them at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..contract import GRAPH_NAMES, GraphName, Record, ReferenceRecord, Size
from ..errors import BackendError
from .atomic_write import write_atomically
from .backends import Backend, OpenGraph
from .bundle import Bundle
from .cache import cache_folder
from .gpu_host import GpuHost
from .known_bad import explanation
from .parity import QUERY_OUTPUTS
from .verify import EXPECTED, VerifiedOutput, judge, own_tolerance, read_reference, tolerance

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Runs the graphs on the reference's inputs; gives their outputs by name."""

FORMAT = 1
"""Part of every pass: raise it when what is compared, or how, changes."""


class SentinelPass(Record, frozen=True, kw_only=True):
    """What is remembered of a pass."""

    facts: dict[str, str]
    """All that it depends on; the file's name is their hash."""
    outputs: int
    """How many were compared."""
    worst: float
    """Largest relative deviation, as a share of what is allowed."""


def sentinel_for(bundle: Bundle, backend: Backend, precision: str) -> Sentinel | None:
    """The sentinel of a backend that runs on a GPU; None for a CPU."""
    host = backend.gpu_host()
    return None if host is None else Sentinel(bundle, backend, host, precision=precision)


class Sentinel:
    """Checks graphs at their first load on a GPU.

    Args:
        bundle: has the references.
        backend: opened the graphs.
        host: where it runs them.
        precision: of the graphs.
        folder: where passes are remembered; in the user's cache by default.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, host: GpuHost, *, precision: str, folder: Path | None = None
    ) -> None:
        self._bundle = bundle
        self._backend = backend
        self._host = host
        self._precision = precision
        self._folder = cache_folder("sentinels") if folder is None else folder

    def has_reference(self, size: Size | None) -> bool:
        """Whether the bundle has what graphs of a canvas, or the text encoder, can be held against."""
        return self._reference(size) is not None

    def check(self, size: Size | None, graphs: Mapping[GraphName, OpenGraph], run: Run) -> bool:
        """Run the reference picture, unless these graphs passed on this GPU before.

        Args:
            size: canvas of the graphs; None for the text encoder, which has none.
            graphs: the opened graphs, by name.
            run: runs them all. An output it leaves out is not compared, and such a pass is not remembered.

        Returns:
            Whether every output was compared, now or before.

        Raises:
            BackendError: an output differs from its reference; the message names the graph, and the known faults of
                such engines.
        """
        reference = self._reference(size)
        if reference is None:
            warnings.warn(
                f"bundle {self._bundle.source}: no references, so this GPU's numbers go unchecked", stacklevel=2
            )
            return False
        tf32 = any(self._backend.loaded(each).tf32 for each in graphs.values())
        limits = self._limits(reference, graphs, tf32)
        if self._remembered(self._facts(size, graphs, limits)):
            return True
        tensors = read_reference(self._bundle, reference)
        found = run(_inputs(tensors, graphs))
        outcomes = [
            judge(graph, reference.size, self._precision, output, *_common(found, tensors, output), allowed=allowed)
            for (graph, output), allowed in limits.items()
            if output in found
        ]
        for outcome in outcomes:  # in the order of the graphs: what follows the first fault differs because of it
            if not outcome.passed:
                raise self._refusal(outcome)
        whole = len(outcomes) == sum(len(graph.spec.outputs) for graph in graphs.values())
        if whole:
            self._remember(self._facts(size, graphs, limits), outcomes)  # anew: some engines are built by a first run
        return whole

    def _reference(self, size: Size | None) -> ReferenceRecord | None:
        """What these graphs themselves gave elsewhere, if the bundle has it, else what PyTorch gave."""
        fitting = [each for each in self._bundle.manifest.references if size in (each.size, None)]
        fitting.sort(key=lambda each: each.precision != self._precision)
        return next((each for each in fitting if each.precision in (self._precision, None)), None)

    def _limits(
        self, reference: ReferenceRecord, graphs: Mapping[GraphName, OpenGraph], tf32: bool
    ) -> dict[tuple[GraphName, str], float]:
        """How far each output may be off; in the order of the graphs."""
        limits: dict[tuple[GraphName, str], float] = {}
        records = {name: self._bundle.graph(name, reference.size, self._precision) for name in GRAPH_NAMES}
        for graph in (name for name in GRAPH_NAMES if name in graphs):
            for tensor in graphs[graph].spec.outputs:
                if reference.precision is None:
                    allowed = tolerance(tensor.name, self._precision, tf32=tf32)
                elif tensor.name in QUERY_OUTPUTS:  # what comes before has a part in them
                    allowed = own_tolerance(tensor.name, records.values())
                else:
                    allowed = own_tolerance(tensor.name, [records[graph]])
                limits[graph, tensor.name] = allowed
        return limits

    def _facts(
        self,
        size: Size | None,
        graphs: Mapping[GraphName, OpenGraph],
        limits: Mapping[tuple[GraphName, str], float],
    ) -> dict[str, str]:
        """All that a pass depends on."""
        host = self._host
        return {
            "format": str(FORMAT),
            "bundle": self._bundle.manifest.seal,
            "precision": self._precision,
            "canvas": str(size or ""),
            "engine": f"{host.engine} {host.engine_version}",
            "settings": self._backend.settings,
            "gpu": f"{host.gpu}, compute capability {host.compute_capability}",
            "driver": host.driver,
            "allowed": " ".join(map(str, limits.values())),
            **{f"plan of {name}": self._backend.loaded(each).sha256 for name, each in graphs.items()},
        }

    def _file(self, facts: dict[str, str]) -> Path:
        return self._folder / f"{hashlib.sha256(msgspec.json.encode(facts, order='sorted')).hexdigest()}.json"

    def _remembered(self, facts: dict[str, str]) -> bool:
        """Whether a pass is on disk. One that cannot be read, or says something else, is none."""
        try:
            kept = msgspec.json.decode(self._file(facts).read_bytes(), type=SentinelPass)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return False
        return kept.facts == facts and kept.outputs > 0 and kept.worst <= 1

    def _remember(self, facts: dict[str, str], outcomes: list[VerifiedOutput]) -> None:
        worst = max((each.relative / each.tolerance for each in outcomes), default=0.0)
        kept = SentinelPass(facts=facts, outputs=len(outcomes), worst=worst)
        with contextlib.suppress(OSError):  # a cache that cannot be written to: checked again next time
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file(facts), msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")

    def _refusal(self, outcome: VerifiedOutput) -> BackendError:
        record = self._bundle.graph(outcome.graph, outcome.size, self._precision)
        known = explanation(self._host, record)
        what = (
            f"sentinel: {outcome.graph} {self._precision} gives wrong numbers on {self._host}: {outcome.output} is "
            f"{outcome.relative:.1e} off the bundle's reference, {outcome.tolerance:.1e} allowed"
        )
        if known:
            return BackendError(f"{what}; {known}", cure="or go without the check: --no-sentinel")
        return BackendError(
            what,
            cure=f"`ebseg verify {self._bundle.source} --backend {self._backend.name}` shows every output; try another "
            "precision, engine version or --backend, or go without the check: --no-sentinel",
        )


def _common(found: Mapping[str, Array], reference: Mapping[str, Array], output: str) -> tuple[Array, dict[str, Array]]:
    """An output and its reference, as many pictures of both as both have."""
    name = f"{EXPECTED}{output}"
    rows = min(len(found[output]), len(reference[name]))
    return found[output][:rows], {name: reference[name][:rows]}


def _inputs(reference: Mapping[str, Array], graphs: Mapping[GraphName, OpenGraph]) -> dict[str, Array]:
    """What of a reference the graphs take from outside."""
    made = {tensor.name for graph in graphs.values() for tensor in graph.spec.outputs}
    wanted = [tensor for graph in graphs.values() for tensor in graph.spec.inputs if tensor.name not in made]
    return {tensor.name: np.ascontiguousarray(reference[tensor.name]) for tensor in wanted}
