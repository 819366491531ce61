"""Read a bundle's graph with its weights mapped, not copied."""

from __future__ import annotations

import mmap

import numpy as np
import onnx_ir as ir

from ...contract import GraphRecord
from ...errors import BundleError
from ...runtime.bundle import Bundle
from .float_types import Array


def read_graph(bundle: Bundle, record: GraphRecord) -> ir.Model:
    """A bundle's graph; its weights are pages of the weights file, read when they are used.

    The file is opened by the bundle, which has checked that it lies inside: onnx's own reader refuses weights that a
    frugal copy has hard-linked.

    Raises:
        BundleError: the graph refers to data that is not in its weights file.
    """
    model = ir.load(bundle.file(record.file))
    pages: mmap.mmap | None = None
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if pages is None:
            if record.weights is None:
                raise BundleError(f"bundle {bundle.source}: {record.file} has no weights file", cure="export it again")
            with bundle.file(record.weights).open("rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        value.const_value = ir.Tensor(_mapped(bundle, record, tensor, pages), dtype=tensor.dtype, name=name)
    return model


def _mapped(bundle: Bundle, record: GraphRecord, tensor: ir.ExternalTensor, pages: mmap.mmap) -> Array:
    """(shape) A tensor's place in the weights file, as an array that cannot be written to."""
    start, dtype = tensor.offset or 0, tensor.dtype.numpy()
    count = int(np.prod(tensor.shape.numpy(), dtype=np.int64))
    if start + count * dtype.itemsize > len(pages):
        raise BundleError(
            f"bundle {bundle.source}: {record.weights} ends before {tensor.name} of {record.file}",
            cure="export it again",
        )
    return np.frombuffer(pages, dtype=dtype, count=count, offset=start).reshape(tensor.shape.numpy())
