"""The graphs of a bundle in their order: canvases and words in, mask logits and class probabilities out."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import (
    ADAB_DECODER,
    CLIP_IMAGE_ENCODER,
    OPEN_VOCAB_HEAD,
    SAM_IMAGE_ENCODER,
    SIZED_GRAPHS,
    GraphName,
    Size,
)
from .backends import Backend, OpenGraph, ResidentTensor, Tensor
from .bundle import Bundle
from .sentinel import Run, sentinel_for

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What the graphs say of a batch of canvases, before the label map."""

    mask_logits: npt.NDArray[np.float32]
    """(B, Q, H/4, W/4), before the sigmoid."""
    class_probabilities: npt.NDArray[np.float32]
    """(B, Q, N)."""


class Pipeline:
    """Opens graphs at their first use and runs them; may be used by several threads.

    Args:
        bundle: has the graphs.
        backend: runs them.
        precision: one of the bundle's.
        overlap: run the two image encoders at the same time.
        sentinel: on a GPU, hold the first run against the bundle's reference (`sentinel.py`).

    Raises:
        BundleError: a canvas of the bundle has no graphs of this precision.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, *, precision: str, overlap: bool = True, sentinel: bool = True
    ) -> None:
        for size in bundle.sizes:  # an unknown precision is an error now, not with the first picture
            bundle.graph(ADAB_DECODER, size, precision)
        self._bundle = bundle
        self._backend = backend
        self._precision = precision
        self._graphs: dict[tuple[GraphName, Size | None], OpenGraph] = {}
        self._lock = threading.Lock()
        self._side_thread = ThreadPoolExecutor(1, thread_name_prefix="ebseg-clip") if overlap else None
        self._sentinel = sentinel_for(bundle, backend, precision) if sentinel else None
        self._checked: set[Size] = set()
        """Canvases whose graphs are open and passed the sentinel."""
        self._check_lock = threading.Lock()
        self._words: dict[str, Array] = {}
        """The vocabulary that the engine keeps, as it was given; empty if it keeps none."""
        self._kept_words: dict[str, Tensor] = {}
        self._words_lock = threading.Lock()

    def run(self, canvas: Size, picture: Mapping[str, Array], words: Mapping[str, Array]) -> Prediction:
        """Run the two image encoders, the decoder and the head.

        Args:
            canvas: one of the bundle's sizes.
            picture: `image` uint8 (B, 3, H, W) and `valid_size` int32 (B, 2), B the bundle's batch.
            words: `text_embeddings` float32 (N+1, D) and `seen` float32 (N,).

        Raises:
            BackendError: a graph could not be opened or run.
        """
        self._check(canvas)
        tensors = self._chain(canvas, picture, self._keep(words))
        found = self._backend.fetch({name: tensors[name] for name in ("mask_logits", "class_probabilities")})
        return Prediction(**{name: array.astype(np.float32, copy=False) for name, array in found.items()})

    def open(self, canvas: Size) -> None:
        """Open the graphs of a canvas now, and check them where a sentinel does."""
        for name in SIZED_GRAPHS:
            self._open(name, canvas)
        self._open(OPEN_VOCAB_HEAD, None)
        self._check(canvas)

    def close(self) -> None:
        """Let go of the graphs. They are opened again if need be."""
        with self._lock:
            for graph in self._graphs.values():
                self._backend.close(graph)
            self._graphs.clear()
        with self._check_lock:
            self._checked.clear()
        with self._words_lock:
            self._words, self._kept_words = {}, {}

    def _check(self, canvas: Size) -> None:
        """Let the sentinel see to the graphs of a canvas."""
        if self._sentinel is None:
            return
        with self._check_lock:  # another thread's first run waits for the verdict
            if canvas not in self._checked:
                self._sentinel.check(canvas, *self._reference_run(canvas))
                self._checked.add(canvas)

    def _reference_run(self, canvas: Size) -> tuple[dict[GraphName, OpenGraph], Run]:
        """The graphs of a canvas, and what runs them all."""
        graphs: dict[GraphName, OpenGraph] = {name: self._open(name, canvas) for name in SIZED_GRAPHS}
        graphs[OPEN_VOCAB_HEAD] = self._open(OPEN_VOCAB_HEAD, None)

        def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            return self._backend.fetch(self._chain(canvas, inputs, inputs))

        return graphs, run

    def _keep(self, words: Mapping[str, Array]) -> Mapping[str, Tensor]:
        """The vocabulary where the engine wants it; it goes there when it changes, not with every picture."""
        with self._words_lock:
            if self._words.keys() == words.keys() and all(
                np.array_equal(self._words[name], array) for name, array in words.items()
            ):
                return self._kept_words
            kept = self._backend.upload(words)
            if not any(isinstance(each, ResidentTensor) for each in kept.values()):
                return kept
            self._words = {name: array.copy() for name, array in words.items()}
            self._kept_words = kept
            return kept

    def _chain(self, canvas: Size, picture: Mapping[str, Array], words: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every output of the four graphs, where the backend keeps them."""
        if self._side_thread is None:
            clip = self._run(CLIP_IMAGE_ENCODER, canvas, picture)
            sam = self._run(SAM_IMAGE_ENCODER, canvas, picture)
        else:  # neither encoder needs the other
            pending = self._side_thread.submit(self._run, CLIP_IMAGE_ENCODER, canvas, picture)
            try:
                sam = self._run(SAM_IMAGE_ENCODER, canvas, picture)
            finally:  # also after an error: nothing may run on when the caller closes the graphs
                clip = pending.result()
        decoded = self._run(ADAB_DECODER, canvas, {**clip, **sam})
        return {**clip, **sam, **decoded, **self._run(OPEN_VOCAB_HEAD, None, {**decoded, **words})}

    def _run(self, name: GraphName, canvas: Size | None, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        graph = self._open(name, canvas)
        inputs: dict[str, Tensor] = {}
        for each in graph.spec.inputs:  # by name, and in the type the graph takes
            tensor = tensors[each.name]
            if tensor.dtype != each.dtype:
                tensor = self._backend.fetch({each.name: tensor})[each.name].astype(each.dtype)
            inputs[each.name] = tensor
        return self._backend.run_resident(graph, inputs)

    def _open(self, name: GraphName, canvas: Size | None) -> OpenGraph:
        with self._lock:
            if (name, canvas) not in self._graphs:
                record = self._bundle.graph(name, canvas, self._precision)
                self._graphs[name, canvas] = self._backend.open(
                    self._backend.graph_file(self._bundle, record), spec=record.spec, name=name
                )
            return self._graphs[name, canvas]
