"""Multi-scale deformable attention, in GridSample.

Source: Zhu et al. 2021 (Deformable DETR). The published code calls a CUDA op; GridSample (bilinear, zeros outside,
align_corners False) computes the same and exists in every engine. Opset 16–19 only: from 20 on TensorRT falls back to
nearest sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 3


class DeformableAttention(nn.Module):
    """Every token samples `points` places in each of three maps, for each head."""

    def __init__(self, width: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads = heads
        self.points = points
        self.sampling_offsets = nn.Linear(width, heads * LEVELS * points * 2)
        self.attention_weights = nn.Linear(width, heads * LEVELS * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, value: Tensor, reference: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Args:
            query: (B, S, C), S tokens of all maps, coarsest map first; positions added.
            value: (B, S, C).
            reference: (S, 2) each token's centre as (x, y) in −1..1.
            sizes: (h, w) of the maps.

        Returns:
            (B, S, C).
        """
        batch, tokens, width = query.shape
        head_dim = width // self.heads
        offsets = self.sampling_offsets(query).reshape(batch, tokens, self.heads, LEVELS, self.points, 2)
        weights = self.attention_weights(query).reshape(batch, tokens, self.heads, LEVELS * self.points).softmax(-1)
        # Points before tokens: the sum over points then adds long rows instead of four neighbours at a time.
        weights = weights.permute(0, 2, 3, 1).reshape(batch * self.heads, 1, LEVELS * self.points, tokens)
        value = self.value_proj(value)

        sampled: Tensor | None = None
        start = 0
        for level, (height, width_l) in enumerate(sizes):
            area = height * width_l
            level_map = value[:, start : start + area].reshape(batch, area, self.heads, head_dim)
            level_map = level_map.permute(0, 2, 3, 1).reshape(batch * self.heads, head_dim, height, width_l)
            # An offset of one cell is 2 / size in the −1..1 coordinates of GridSample.
            cell = torch.tensor([2.0 / width_l, 2.0 / height], dtype=query.dtype, device=query.device)
            grid = reference[None, :, None, None, :] + offsets[:, :, :, level] * cell
            grid = grid.permute(0, 2, 3, 1, 4).reshape(batch * self.heads, self.points, tokens, 2)
            picked = F.grid_sample(level_map, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            share = weights[:, :, level * self.points : (level + 1) * self.points]
            part = (picked * share).sum(2)  # (B·M, d, S)
            sampled = part if sampled is None else sampled + part
            start += area
        assert sampled is not None
        merged = sampled.reshape(batch, self.heads * head_dim, tokens).transpose(1, 2)
        result: Tensor = self.output_proj(merged)
        return result


class DeformableLayer(nn.Module):
    """Deformable self-attention and feed-forward, post-norm."""

    def __init__(self, width: int, heads: int, points: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, heads, points)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, ffn)
        self.linear2 = nn.Linear(ffn, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """(B, S, C) -> (B, S, C)."""
        x = self.norm1(x + self.self_attn(x + position, x, reference, sizes))
        result: Tensor = self.norm2(x + self.linear2(F.relu(self.linear1(x))))
        return result


class DeformableEncoder(nn.Module):
    """The published `transformer`: level embedding and a stack of layers."""

    def __init__(self, width: int, heads: int, points: int, ffn: int, depth: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(LEVELS, width))
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(DeformableLayer(width, heads, points, ffn) for _ in range(depth))


def centres(sizes: list[tuple[int, int]]) -> Tensor:
    """(S, 2): the centre of every cell of every map as (x, y) in −1..1, row by row, in the order of `sizes`."""
    parts = []
    for height, width in sizes:
        y = (torch.arange(height) + 0.5) / height * 2 - 1
        x = (torch.arange(width) + 0.5) / width * 2 - 1
        parts.append(torch.stack((x.repeat(height), y.repeat_interleave(width)), dim=1))
    return torch.cat(parts)
