"""SAM's ViT without its neck: the outputs of its four global-attention blocks.

The blocks are segment_anything's own; this module runs them with two changes that leave the result as it is. The
linear layers see only real tokens (the zero padding of a window turns into the layer's bias, which is what padding
after norm1 gives), and the decomposed relative positions ride in the attention product: with rows R_h, R_w of a query
and one-hot codes of a key's row and column,

    q·k/√d + R_h[row(k)] + R_w[column(k)] = [q/√d, R_h, R_w] · [k, onehot(row), onehot(column)]

so that no (N, N) array is touched between the product and the softmax. Source: Kirillov et al. 2023; MViTv2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from segment_anything.modeling.image_encoder import Block, PatchEmbed, window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn import functional as F

from ..contract import Size
from .config import SamConfig
from .positions import relative_table, resize_grid
from .preprocess import SAM_MEAN, SAM_STD, Normalise

LAYER_NORM_EPS = 1e-6


class SamBackbone(nn.Module):
    """Weights under the published names (`backbone.*`)."""

    blocks: Any  # segment_anything's Block, in a ModuleList

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        side = config.image_size // config.patch
        self.patch_embed = PatchEmbed(
            (config.patch, config.patch), (config.patch, config.patch), embed_dim=config.width
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, config.width))
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS),
                use_rel_pos=True,
                window_size=0 if i in config.global_blocks else config.window,
                input_size=(side, side),
            )
            for i in range(config.depth)
        )


class RelativeAttention(nn.Module):
    """One block's attention over tiles of a fixed size (h, w), relative positions included."""

    table_rows: Tensor
    table_columns: Tensor
    key_codes: Tensor

    attention: Any
    """segment_anything's Attention."""

    def __init__(self, attention: Any, tile: tuple[int, int]) -> None:
        super().__init__()
        self.attention = attention
        self.heads: int = attention.num_heads
        self.tile = tile
        height, width = tile
        # (h, d, h) and (w, d, w): a query at row i times column i of the table.
        rows = relative_table(attention.rel_pos_h, height).transpose(1, 2)
        columns = relative_table(attention.rel_pos_w, width).transpose(1, 2)
        self.register_buffer("table_rows", rows, persistent=False)
        self.register_buffer("table_columns", columns, persistent=False)
        row_code = torch.eye(height).repeat_interleave(width, dim=1)  # (h, h·w)
        column_code = torch.eye(width).repeat(1, height)  # (w, h·w)
        self.register_buffer("key_codes", torch.cat((row_code, column_code)), persistent=False)

    def forward(self, qkv: Tensor) -> Tensor:
        """(T, h, w, 3C) of T tiles -> (T, h, w, C)."""
        tiles, height, width, channels = qkv.shape
        head_dim = channels // 3 // self.heads
        tokens = height * width
        qkv = qkv.reshape(tiles, tokens, 3, self.heads, head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = (x.reshape(tiles * self.heads, tokens, head_dim) for x in qkv.unbind(0))
        query_map = q.reshape(-1, height, width, head_dim)
        by_row = query_map @ self.table_rows  # (T·M, h, w, h)
        by_column = (query_map.transpose(1, 2) @ self.table_columns).transpose(1, 2)  # (T·M, h, w, w)
        position = torch.cat((by_row, by_column), dim=3).reshape(-1, tokens, height + width)
        codes = self.key_codes.expand(tiles * self.heads, -1, -1)
        scores = torch.cat((q * head_dim**-0.5, position), dim=2) @ torch.cat((k.transpose(1, 2), codes), dim=1)
        mixed = scores.softmax(dim=-1) @ v
        mixed = mixed.reshape(tiles, self.heads, tokens, head_dim).transpose(1, 2)
        return mixed.reshape(tiles, height, width, channels // 3)


class SamImageEncoder(nn.Module):
    """The graph `sam_image_encoder`: uint8 canvas in, four (B, C, H/p, W/p) features out, for one canvas size."""

    attentions: Any  # RelativeAttention, in a ModuleList
    position: Tensor

    def __init__(self, backbone: SamBackbone, config: SamConfig, size: Size) -> None:
        super().__init__()
        self.backbone = backbone
        self.window = config.window
        self.global_blocks = config.global_blocks
        grid = (size.height // config.patch, size.width // config.patch)
        self.normalise = Normalise(size, SAM_MEAN, SAM_STD)
        self.register_buffer("position", resize_grid(backbone.pos_embed[0], grid), persistent=False)
        self.attentions = nn.ModuleList(
            RelativeAttention(
                block.attn,
                grid if i in config.global_blocks else (config.window, config.window),
            )
            for i, block in enumerate(backbone.blocks)
        )

    def forward(self, image: Tensor, valid_size: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) uint8 and (B, 2) int32 -> four features."""
        return self.encode(self.normalise(image, valid_size))

    def encode(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Normalised (B, 3, H, W) -> four features."""
        x = self.backbone.patch_embed(picture) + self.position
        features = []
        for i, (block, attention) in enumerate(zip(self.backbone.blocks, self.attentions, strict=True)):
            y = block.norm1(x)
            mixed = attention(block.attn.qkv(y)) if i in self.global_blocks else self._in_windows(attention, y)
            x = x + block.attn.proj(mixed)
            x = x + block.mlp(block.norm2(x))
            if i in self.global_blocks:
                features.append(x.permute(0, 3, 1, 2))
        return tuple(features)

    def _in_windows(self, attention: RelativeAttention, y: Tensor) -> Tensor:
        """Attention inside windows: (B, h, w, C) -> (B, h, w, C).

        A token padded with zeros after norm1 has the layer's bias as its qkv, so the bias is added after padding.
        """
        height, width = y.shape[1:3]
        qkv = attention.attention.qkv
        windows, padded = window_partition(F.linear(y, qkv.weight), self.window)
        mixed = attention(windows + qkv.bias)
        result: Tensor = window_unpartition(mixed, self.window, padded, (height, width))
        return result
