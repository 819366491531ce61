"""CUDA kernels of ours: their source, and how it is compiled and started."""

from __future__ import annotations

from .device_label_map import DeviceLabelMap

__all__ = ["DeviceLabelMap"]
