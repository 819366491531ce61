"""One weights file for all graphs of a name: sizes share every tensor that does not depend on the size.

ONNX graphs keep large tensors as external data. Here a tensor is stored once by its content, so a second canvas size
adds only what really differs (resized positions), and TensorRT, ONNX Runtime and OpenVINO still read plain ONNX.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir

INLINE_BYTES = 1024
"""Smaller tensors stay in the .onnx file, where shapes and axes belong."""

ALIGNMENT = 4096
"""A tensor starts on a page, so that a runtime can map it."""


class WeightsFile:
    """Append-only external data. Use as a context manager; each graph is moved in with `adopt`.

    A file that no tensor went to is removed at the end.
    """

    def __init__(self, path: Path, *, root: Path) -> None:
        self.path = path
        self.name = path.relative_to(root).as_posix()
        self._file = path.open("xb")
        self._places: dict[tuple[str, str], tuple[int, int]] = {}

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self.used:
            self.path.unlink()

    @property
    def used(self) -> bool:
        """Whether any tensor is in the file."""
        return bool(self._places)

    def adopt(self, model: ir.Model) -> None:
        """Move a model's large initializers here; the model then refers to this file by its name."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            if tensor.nbytes < INLINE_BYTES:
                value.const_value = ir.Tensor(tensor.numpy(), name=value.name)  # leaves torch's memory
                continue
            data = np.ascontiguousarray(tensor.numpy())
            offset, length = self._place(data, str(tensor.dtype))
            value.const_value = ir.ExternalTensor(
                self.path.name,
                offset,
                length,
                tensor.dtype,
                shape=ir.Shape(list(tensor.shape)),
                name=value.name or "",
                base_dir=self.path.parent,
            )
        self._file.flush()

    def _place(self, data: np.ndarray, dtype: str) -> tuple[int, int]:
        content = data.view(np.uint8).reshape(-1)
        key = (dtype, hashlib.sha256(content.data).hexdigest())
        if key not in self._places:
            self._file.seek(-(-self._file.tell() // ALIGNMENT) * ALIGNMENT)
            self._places[key] = (self._file.tell(), content.nbytes)
            self._file.write(content.data)
        return self._places[key]
