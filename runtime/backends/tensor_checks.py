"""Whether arrays fit a graph's border, and a graph's border what it should be; an error names the first fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...contract import GraphSpec, TensorSpec
from ...errors import BackendError


def check_tensors(
    graph: str,
    specs: Sequence[TensorSpec],
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    side: str = "input",
    lengths: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Check arrays against the inputs (or outputs) of a graph.

    Args:
        graph: name for errors.
        specs: what is wanted.
        arrays: what is given, by name.
        side: "input" or "output", for errors.
        lengths: dynamic dimensions whose length is known already.

    Returns:
        The length of every dynamic dimension, by its name.

    Raises:
        BackendError: names the first tensor that does not fit, what it is and what it should be.
    """
    wanted = {tensor.name: tensor for tensor in specs}
    for label, names in (("missing", wanted.keys() - arrays.keys()), ("unexpected", arrays.keys() - wanted.keys())):
        if names:
            raise BackendError(
                f"graph {graph}: {label} {side} {', '.join(sorted(names))}",
                cure=f"give exactly {', '.join(wanted)}",
            )
    found = {dimension: (length, "the inputs") for dimension, length in (lengths or {}).items()}
    for name, tensor in wanted.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray) or array.dtype != np.dtype(tensor.dtype):
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise BackendError(
                f"graph {graph}: {side} {name} is {got}, not {tensor.dtype}", cure=f"convert it to {tensor.dtype}"
            )
        fits = len(array.shape) == len(tensor.shape) and all(
            isinstance(want, str) or got == want for got, want in zip(array.shape, tensor.shape, strict=True)
        )
        if not fits:
            raise BackendError(
                f"graph {graph}: {side} {name} has shape {_shape(array.shape)}", cure=f"give {_shape(tensor.shape)}"
            )
        for length, dimension in zip(array.shape, tensor.shape, strict=True):
            if isinstance(dimension, int):
                continue
            first, where = found.setdefault(dimension, (length, name))
            if first != length:
                raise BackendError(
                    f"graph {graph}: dimension {dimension} is {first} in {where} and {length} in {name}",
                    cure="give both the same length",
                )
    return {dimension: length for dimension, (length, _) in found.items()}


def check_border(graph: str, file: Path, found_spec: GraphSpec, spec: GraphSpec) -> None:
    """Check the border a file really has against the one it should have.

    Raises:
        BackendError: names, types or shapes differ; a dynamic length may carry another name.
    """
    for side, found, wanted in (
        ("input", found_spec.inputs, spec.inputs),
        ("output", found_spec.outputs, spec.outputs),
    ):
        by_name = {tensor.name: tensor for tensor in found}
        if by_name.keys() != {tensor.name for tensor in wanted}:
            raise BackendError(
                f"graph {graph}: {file.name} has {side}s {', '.join(by_name)}; "
                f"the manifest says {', '.join(tensor.name for tensor in wanted)}",
                cure="export the bundle again",
            )
        for tensor in wanted:
            if not _same(by_name[tensor.name], tensor):
                raise BackendError(
                    f"graph {graph}: {side} {_describe(by_name[tensor.name])} of {file.name} "
                    f"is {_describe(tensor)} in the manifest",
                    cure="export the bundle again",
                )


def _same(found: TensorSpec, wanted: TensorSpec) -> bool:
    """Equal types and shapes; a dynamic length may carry another name, which engines are free to change."""
    return (
        found.dtype == wanted.dtype
        and len(found.shape) == len(wanted.shape)
        and all(
            a == b or (isinstance(a, str) and isinstance(b, str))
            for a, b in zip(found.shape, wanted.shape, strict=True)
        )
    )


def _describe(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.dtype} {_shape(tensor.shape)}"


def _shape(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
