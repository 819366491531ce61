"""Execution engines behind one contract: `open_backend` gives one by name."""

from __future__ import annotations

from .base import Backend, LoadedGraph, OpenGraph, ResidentTensor, Tensor
from .choose import BACKEND_NAMES, open_backend
from .tensor_checks import check_tensors

__all__ = [
    "BACKEND_NAMES",
    "Backend",
    "LoadedGraph",
    "OpenGraph",
    "ResidentTensor",
    "Tensor",
    "check_tensors",
    "open_backend",
]
