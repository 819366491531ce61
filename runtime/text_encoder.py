"""A bundle's text encoder: token ids in, prompt embeddings out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import TEXT_ENCODER
from .backends import Backend, OpenGraph
from .bundle import Bundle
from .sentinel import sentinel_for


class TextEncoder:
    """A bundle's text encoder, opened at the first call: cached names need no session.

    Args:
        bundle: has the graph.
        backend: runs it.
        precision: of the graph; the bundle's first by default.
        sentinel: on a GPU, hold it against the bundle's reference before its first run.
    """

    def __init__(self, bundle: Bundle, backend: Backend, precision: str | None, sentinel: bool) -> None:
        self._bundle, self._backend, self._checked = bundle, backend, not sentinel
        self._record = bundle.graph(TEXT_ENCODER, precision=precision)
        self._sentinel = sentinel_for(bundle, backend, self._record.precision) if sentinel else None
        self._graph: Any = None
        hashes = bundle.graph_hashes(self._record).values()
        if self._sentinel is not None:
            self._checkable = self._sentinel.has_reference(None)
        else:
            self._checkable = backend.gpu_host() is None  # a CPU has no sentinel
        # Names that a GPU encoded without the sentinel may be wrong; later runs with it must not find them.
        unchecked = [] if self._checkable else ["unchecked"]
        self.lasting = True
        """Whether what was encoded may be kept under `identity`: not if the check that this tells of was impossible."""
        self.identity = " ".join([*hashes, backend.name, *filter(None, [backend.settings]), *unchecked])
        """What the numbers depend on beyond the weights: the graph's files (precision), the engine and its settings."""

    def __call__(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Embeddings (T, D) of token ids (T, 77)."""
        if self._graph is None:
            path = self._backend.graph_file(self._bundle, self._record)
            self._graph = self._backend.open(path, spec=self._record.spec, name=TEXT_ENCODER)
        if not self._checked:
            self._check(self._graph)
            self._checked = True
        return self._encode(tokens)

    def _encode(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        embeddings: NDArray[np.float32] = self._backend.run(self._graph, {"tokens": self._cut(tokens)})[
            "prompt_embeddings"
        ]
        return embeddings

    def _cut(self, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """As many columns as a graph of dynamic length needs."""
        if not isinstance(self._record.spec.inputs[0].shape[1], str):
            return tokens
        # Attention is causal, so what follows the end of text (the largest id) changes nothing. Of 77 tokens most
        # names need 12 to 20: a seventh of the time.
        return np.ascontiguousarray(tokens[:, : int(tokens.argmax(axis=1).max()) + 1])

    def _check(self, graph: OpenGraph) -> None:
        """Let the sentinel see to the text encoder, on a GPU."""
        if self._sentinel is None:
            return

        def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            tokens = self._cut(inputs["tokens"])
            if self._backend.takes(graph, {"tokens": tokens.shape}):
                return {"prompt_embeddings": self._encode(tokens)}
            warnings.warn(
                f"{TEXT_ENCODER} goes unchecked: it was not built for the reference's {tokens.shape} tokens",
                stacklevel=2,
            )
            return {}

        compared = self._sentinel.check(None, {TEXT_ENCODER: graph}, run)
        self.lasting = compared or not self._checkable

    def __enter__(self) -> TextEncoder:
        return self

    def __exit__(self, *error: object) -> None:
        if self._graph is not None:
            self._backend.close(self._graph)
