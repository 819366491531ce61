"""Resampling as the reference does it: half-pixel centres, no antialiasing."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), coordinates from the size ratio."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Shrink(nn.Module):
    """Bilinear down-scaling whose coordinates come from 1/scale, with output floor(scale · size).

    The two ways of placing samples differ as soon as scale · size is fractional, and ONNX runtimes disagree on which
    one a Resize means; constant indices and weights leave nothing to interpret. At scale 0.5 every sample falls
    between two pixels of each axis, which is average pooling.
    """

    rows_low: Tensor
    rows_high: Tensor
    rows_weight: Tensor
    columns_low: Tensor
    columns_high: Tensor
    columns_weight: Tensor

    def __init__(self, size: tuple[int, int], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.output_size = (math.floor(size[0] * scale), math.floor(size[1] * scale))
        if scale not in (0.5, 1.0):
            for axis, length, count in zip(("rows", "columns"), size, self.output_size, strict=True):
                position = ((torch.arange(count, dtype=torch.float64) + 0.5) / scale - 0.5).clamp(min=0)
                low = position.floor().long().clamp(max=length - 1)
                self.register_buffer(f"{axis}_low", low, persistent=False)
                self.register_buffer(f"{axis}_high", (low + 1).clamp(max=length - 1), persistent=False)
                self.register_buffer(f"{axis}_weight", (position - low).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, floor(s·H), floor(s·W))."""
        if self.scale == 1.0:
            return x
        if self.scale == 0.5:
            return F.avg_pool2d(x, 2)
        weight = self.rows_weight[:, None]
        x = x.index_select(2, self.rows_low) * (1 - weight) + x.index_select(2, self.rows_high) * weight
        weight = self.columns_weight
        return x.index_select(3, self.columns_low) * (1 - weight) + x.index_select(3, self.columns_high) * weight


class AdaptiveMaxPool(nn.Module):
    """`F.adaptive_max_pool2d` for fixed sizes, in operators every engine has.

    Window i covers floor(i·n/m) to ceil((i+1)·n/m): a plain max-pool when m divides n, else a gather of each window's
    elements (the last one repeated), one axis at a time.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], output_size: tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size
        self.divides = size[0] % output_size[0] == 0 and size[1] % output_size[1] == 0
        self.window = (size[0] // output_size[0], size[1] // output_size[1])
        if not self.divides:
            self.register_buffer("rows", _windows(size[0], output_size[0]), persistent=False)
            self.register_buffer("columns", _windows(size[1], output_size[1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w)."""
        if self.divides:
            return F.max_pool2d(x, self.window, self.window)
        batch, channels, _, width = x.shape
        height, steps = self.rows.shape
        x = x.index_select(2, self.rows.flatten()).reshape(batch, channels, height, steps, width).amax(3)
        width, steps = self.columns.shape
        return x.index_select(3, self.columns.flatten()).reshape(batch, channels, height, width, steps).amax(4)


def _windows(length: int, count: int) -> Tensor:
    """(count, longest window) indices of each adaptive window's elements."""
    starts = [i * length // count for i in range(count)]
    ends = [-(-(i + 1) * length // count) for i in range(count)]
    longest = max(end - start for start, end in zip(starts, ends, strict=True))
    return torch.tensor([[min(s + j, e - 1) for j in range(longest)] for s, e in zip(starts, ends, strict=True)])
