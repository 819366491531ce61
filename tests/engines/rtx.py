"""A mark for tests that build real engines: TensorRT for RTX does that without a GPU."""

from __future__ import annotations

import importlib.util

import pytest

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed (extra tensorrt-rtx)"
)
