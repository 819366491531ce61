"""Position embeddings: learned ones resized to a grid, and the sine ones of DETR."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_grid(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, half-pixel, no antialiasing: (h, w, C) -> (*size, C)."""
    resized = F.interpolate(grid.permute(2, 0, 1)[None], size=size, mode="bicubic", align_corners=False)
    return resized[0].permute(1, 2, 0)


def sine_positions(size: tuple[int, int], channels: int) -> Tensor:
    """DETR's normalised 2-D sine embedding, y first: (channels, h, w).

    Source: Carion et al. 2020; positions run 1..n, divided by n + 1e-6 and scaled to 2π, temperature 10000.
    """
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32)
    period = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)

    def axis(length: int) -> Tensor:
        position = torch.arange(1, length + 1, dtype=torch.float32) / (length + 1e-6) * (2 * math.pi)
        angle = position[:, None] / period
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)  # (length, half)

    height, width = size
    rows = axis(height)[:, None, :].expand(height, width, half)
    columns = axis(width)[None, :, :].expand(height, width, half)
    return torch.cat((rows, columns), dim=2).permute(2, 0, 1)


def relative_table(table: Tensor, length: int) -> Tensor:
    """SAM's decomposed relative positions for one axis.

    Args:
        table: (2m − 1, d), linearly resized to 2·length − 1 entries when it has another length.
        length: tokens along the axis.

    Returns:
        (length, length, d): entry [i, j] belongs to query position i and key position j.
    """
    wanted = 2 * length - 1
    if table.shape[0] != wanted:
        table = F.interpolate(table.T[None], size=wanted, mode="linear", align_corners=False)[0].T
    place = torch.arange(length)
    return table[place[:, None] - place[None, :] + length - 1]
