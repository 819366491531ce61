"""Run a graph on picture after picture and count its activations.

As many tensors are read in one run as fit in a budget of memory; for the next ones the pictures pass once more, through
as much of the graph as those need. So memory depends on the graph and the budget, never on the number of pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import CalibrationError
from ..runtime.threads import usable_cores
from .counts import KEY_DIGITS, Counts, load_counts, save_counts
from .feeds import Feeds, graph_hash
from .histogram import BINS, Histogram, NotFinite, NotFiniteError
from .observers import Observer, observed_range
from .ranges import Range
from .tap import Array, GraphTap, Model, OpenTap

BUDGET_BYTES = 1 << 30
"""Activations read in one run. The 73 inputs of SAM's linear layers in EBSeg-B at 640x640 take 544 MB."""

SAVE_EVERY = 8
"""Runs between two writes of the counts; a write takes some 0.1 s."""

Progress = Callable[[int, int], None]
"""Called as progress(runs done, runs in all), over all passes."""


def collect(
    model: Model,
    tensors: Sequence[str],
    feeds: Feeds,
    observer: Observer,
    *,
    name: str = "graph",
    state: Path | None = None,
    budget_bytes: int = BUDGET_BYTES,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Range]:
    """The range of each tensor; arguments as `collect_histograms`.

    Raises:
        CalibrationError: see `collect_histograms`.
    """
    histograms = collect_histograms(
        model, tensors, feeds, name=name, state=state, budget_bytes=budget_bytes, threads=threads, progress=progress
    )
    return {tensor: observed_range(histogram, observer) for tensor, histogram in histograms.items()}


def collect_histograms(
    model: Model,
    tensors: Sequence[str],
    feeds: Feeds,
    *,
    name: str = "graph",
    state: Path | None = None,
    budget_bytes: int = BUDGET_BYTES,
    threads: int | None = None,
    save_every: int = SAVE_EVERY,
    progress: Progress = lambda done, total: None,
    notice: Callable[[str], None] = lambda line: None,
) -> dict[str, Histogram]:
    """Count tensors of a graph over all feeds.

    Args:
        model: an .onnx file, or a model whose weights are inside it.
        tensors: names of activations or inputs of this graph, float32 or float16.
        feeds: inputs of the graph; asked for once per pass.
        name: what to call the graph in errors.
        state: folder where counts are kept, so that a broken-off collection goes on where it was and what was counted
            before, for whichever tensors, is not run again; the result is the same. Needs a model given as a file.
            Nothing is kept without.
        budget_bytes: memory for the activations that are read in one run.
        threads: for ONNX Runtime and for counting; None lets both choose.
        save_every: runs between two writes of the counts.
        progress: see Progress.
        notice: called with one line when earlier counts are taken up.

    Returns:
        Tensor name -> histogram, in the order given.

    Raises:
        CalibrationError: a tensor is not an activation of the graph, the graph cannot be run, or a tensor holds NaN
            or infinity: names the tensor, the node it comes from and the picture.
    """
    if len(feeds) == 0:
        raise CalibrationError(f"graph {name}: nothing to run it on", cure="give pictures")
    tap = GraphTap(model, name=name)
    tensors = list(dict.fromkeys(tensors))
    tap.check(tensors)
    keeper = _Keeper(state, model, feeds, save_every)
    counts = keeper.load(tensors)
    before = {tensor: counts.done[tensor] for tensor in tensors}
    passes = [
        (done, chunk)
        for done in sorted(set(before.values()))
        if done < len(feeds)
        for chunk in tap.chunks([tensor for tensor in tensors if before[tensor] == done], budget_bytes)
    ]
    total = sum(len(feeds) - done for done, _ in passes)
    if any(before.values()):
        notice(_counted_before(name, before, len(feeds)))
    finished = 0
    progress(finished, total)
    with ThreadPoolExecutor(threads or usable_cores(), thread_name_prefix="ebseg-count") as pool:
        for first, chunk in passes:
            tapped = tap.open(chunk, threads=threads)
            for index in range(first, len(feeds)):
                _count(tapped, feeds, index, counts, pool)
                finished += 1
                keeper.counted(counts)
                progress(finished, total)
            del tapped  # before the next one is opened: each holds the weights
    keeper.save(counts)
    return {tensor: counts.histograms[tensor] for tensor in tensors}


def _counted_before(name: str, before: Mapping[str, int], runs: int) -> str:
    known = [done for done in before.values() if done]
    of = "" if len(known) == len(before) else f" for {len(known)} of {len(before)} tensors"
    return f"graph {name}: {min(known)} of {runs} runs were counted before{of}"


def _count(tapped: OpenTap, feeds: Feeds, index: int, counts: Counts, pool: ThreadPoolExecutor) -> None:
    """Add one run's activations to the counts of its tensors: to all of them, or to none."""
    feed = feeds.feed(index)
    tensors = tapped.read(feed)

    def histogram_of(values: Array) -> Histogram | NotFinite:
        histogram = Histogram()
        try:
            histogram.add(values)
        except NotFiniteError as error:
            return error.found
        return histogram

    found = dict(zip(tensors, pool.map(histogram_of, tensors.values()), strict=True))
    for tensor, outcome in found.items():
        if isinstance(outcome, NotFinite):
            first, bad = _origin(tapped.tap, feed) or (tensor, outcome)
            raise CalibrationError(
                f"graph {tapped.tap.name}: {tapped.tap.producer(first)} gives {bad} "
                f"(tensor {first!r}, picture {feeds.label(index)})",
                cure="leave the picture out, or check the weights with `ebseg verify`",
            )
    for tensor, outcome in found.items():
        assert isinstance(outcome, Histogram)
        counts.histograms[tensor].merge(outcome)
        counts.done[tensor] += 1


def _origin(tap: GraphTap, feed: Mapping[str, Array]) -> tuple[str, NotFinite] | None:
    """The graph's first tensor with NaN or +infinity; -infinity may be a mask's. None if there is none."""
    for chunk in tap.chunks(tap.activations(), BUDGET_BYTES):
        tensors = tap.open(chunk).read(feed)
        for tensor in chunk:
            values = tensors[tensor]
            nan, infinite = int(np.isnan(values).sum()), int(np.isposinf(values).sum())
            if nan or infinite:
                return tensor, NotFinite(nan=nan, infinite=infinite, values=values.size)
    return None


class _Keeper:
    """Keeps counts in a folder, under what they were counted on: of every tensor that was ever asked for."""

    def __init__(self, state: Path | None, model: Model, feeds: Feeds, save_every: int) -> None:
        self._path: Path | None = None
        self._key = ""
        self._save_every = save_every
        self._unsaved = 0
        if state is not None and isinstance(model, Path):
            self._key = counts_key(graph_hash(model), feeds.identity)
            self._path = state / f"{model.stem}-{self._key[:KEY_DIGITS]}.npz"
            state.mkdir(parents=True, exist_ok=True)

    def load(self, tensors: Sequence[str]) -> Counts:
        """What was kept, with nothing counted yet for those of `tensors` that it lacks."""
        held = None if self._path is None else load_counts(self._path, self._key)
        wanted = Counts.none_of(tensors)
        if held is None:
            return wanted
        return Counts(
            histograms={**wanted.histograms, **held.histograms},
            done={**wanted.done, **held.done},
        )

    def counted(self, counts: Counts) -> None:
        self._unsaved += 1
        if self._unsaved >= self._save_every:
            self.save(counts)

    def save(self, counts: Counts) -> None:
        if self._path is not None and self._unsaved:
            save_counts(self._path, self._key, counts)
        self._unsaved = 0


def counts_key(graph: str, data: str) -> str:
    """What counts depend on, as a sha256: the graph's hash, the data's hash and the bins."""
    content: Mapping[str, object] = {"graph": graph, "data": data, "bins": BINS}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
