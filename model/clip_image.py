"""CLIP's image tower with its two streams: everything about it that depends on the picture alone.

With y = ln_1(u), the original stream u and the surgery stream s:

    s ← s + proj(softmax(v vᵀ / √d) v)                    (no feed-forward)
    u ← u + proj(softmax(q kᵀ / √d) v);  u ← u + mlp(ln_2(u))

Patch and CLS tokens never attend to the mask queries, so the fusion features, the dense map of D, and every head
block's keys and values of the patches can be computed once, before any query exists. Source: EBSeg (CVPR 2024);
CLIP Surgery.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..contract import Size
from .attention import SplitAttention, attend, merge_heads, packed_attention
from .config import EbsegConfig
from .positions import resize_grid
from .preprocess import CLIP_MEAN, CLIP_STD, Normalise
from .resize import Shrink


class ClipFeatures(NamedTuple):
    """What the decoder needs of CLIP; shapes as in contract.graph_spec."""

    fusion: tuple[Tensor, Tensor, Tensor]
    """(B, C, h, w) each."""
    cls: Tensor
    """(B, 1, C), entering the head blocks: every mask query starts as a copy."""
    head_keys: Tensor
    """(B, L, M, h·w, d)."""
    head_values: Tensor
    dense: Tensor
    """(B, D, h, w), unit length along D."""


class SplitBlock(nn.Module):
    """A CLIP block that stores its attention as qkv and proj; norms and feed-forward are open_clip's own."""

    ln_1: nn.LayerNorm
    mlp: nn.Sequential
    ln_2: nn.LayerNorm

    def __init__(self, block: Any, heads: int) -> None:
        super().__init__()
        width = block.ln_1.normalized_shape[0]
        self.attn = SplitAttention(width, heads)
        self.ln_1 = block.ln_1
        self.mlp = block.mlp
        self.ln_2 = block.ln_2


class PlainLayer(nn.Module):
    """Runs one of open_clip's residual attention blocks."""

    block: Any

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C); bias broadcastable to (B, M, N, N)."""
        block = self.block
        y = block.ln_1(x)
        x = x + packed_attention(block.attn, y, y, y, bias)
        result: Tensor = x + block.mlp(block.ln_2(x))
        return result


class SplitLayer(nn.Module):
    """Runs one SplitBlock on both streams.

    Only the patches' rows of s are ever read, so only those are computed; u is computed only when somebody reads it.
    """

    def __init__(self, block: SplitBlock, *, u_is_read: bool) -> None:
        super().__init__()
        self.block = block
        self.u_is_read = u_is_read

    def forward(self, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u (B, 1 + P, C) and s (B, P, C) -> u, s, and the patches' keys and values (B, M, P, d)."""
        block = self.block
        y = block.ln_1(u)
        if self.u_is_read:
            q, k, v = block.attn.project(y)
            u = u + block.attn.proj(merge_heads(attend(q, k, v)))
            u = u + block.mlp(block.ln_2(u))
        else:
            k, v = block.attn.project_keys_values(y)
        s = s + block.attn.proj(merge_heads(attend(v[:, :, 1:], v, v)))
        return u, s, k[:, :, 1:], v[:, :, 1:]


class ClipTrunk(nn.Module):
    """Weights up to the head, under the published names."""

    class_embedding: nn.Parameter
    positional_embedding: nn.Parameter
    conv1: nn.Conv2d
    ln_pre: nn.LayerNorm

    def __init__(self, visual: Any, config: EbsegConfig) -> None:
        super().__init__()
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding
        self.conv1 = visual.conv1
        self.ln_pre = visual.ln_pre
        blocks = list(visual.transformer.resblocks)[: config.first_head_block]
        self.resblocks = nn.ModuleList(
            block if i < config.plain_blocks else SplitBlock(block, config.clip.heads) for i, block in enumerate(blocks)
        )

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """(1 + h·w, C) for a grid of patches; the learned grid as it is when the sizes agree."""
        embedding = self.positional_embedding
        side = round((embedding.shape[0] - 1) ** 0.5)
        if grid == (side, side):
            return embedding.clone()  # torch.export stumbles over a buffer that is a parameter
        patches = resize_grid(embedding[1:].reshape(side, side, -1), grid)
        return torch.cat((embedding[:1], patches.flatten(0, 1)))


class ClipHead(nn.Module):
    """Weights of the head blocks and of the projection into the space shared with text."""

    ln_post: nn.LayerNorm
    proj: nn.Parameter

    def __init__(self, visual: Any, config: EbsegConfig) -> None:
        super().__init__()
        blocks = list(visual.transformer.resblocks)[config.first_head_block :]
        self.resblocks = nn.ModuleList(SplitBlock(block, config.clip.heads) for block in blocks)
        self.ln_post = visual.ln_post
        self.proj = visual.proj

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, D), unit length."""
        return F.normalize(self.ln_post(tokens) @ self.proj, dim=-1)


class ClipImageEncoder(nn.Module):
    """The graph `clip_image_encoder`: uint8 canvas in, ClipFeatures out, for one canvas size."""

    position: Tensor

    def __init__(self, trunk: ClipTrunk, head: ClipHead, config: EbsegConfig, size: Size) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.grid = config.spec(logit_scale=1.0).clip_grid(size)
        self.first_head_block = config.first_head_block
        self.fusion_layers = config.fusion_layers
        blocks = [*trunk.resblocks, *head.resblocks]
        self.layers = nn.ModuleList(
            SplitLayer(block, u_is_read=i < len(blocks) or i in config.fusion_layers)
            if isinstance(block, SplitBlock)
            else PlainLayer(block)
            for i, block in enumerate(blocks, start=1)
        )
        self.normalise = Normalise(size, CLIP_MEAN, CLIP_STD)
        self.shrink = Shrink((size.height, size.width), config.clip_input_scale)
        self.register_buffer("position", trunk.positions(self.grid), persistent=False)

    def forward(self, image: Tensor, valid_size: Tensor) -> ClipFeatures:
        """(B, 3, H, W) uint8 and (B, 2) int32 -> ClipFeatures."""
        return self.encode(self.embed_patches(self.normalise(image, valid_size)))

    def embed_patches(self, picture: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> tokens (B, 1 + h·w, C), CLS first."""
        patches = self.trunk.conv1(self.shrink(picture)).flatten(2).transpose(1, 2)
        cls = self.trunk.class_embedding.expand(patches.shape[0], 1, -1)
        tokens: Tensor = self.trunk.ln_pre(torch.cat((cls, patches), dim=1) + self.position)
        return tokens

    def encode(self, tokens: Tensor) -> ClipFeatures:
        """Tokens (B, 1 + h·w, C) through all blocks."""
        u, s = tokens, tokens[:, 1:]
        cls = tokens[:, :1]
        keys, values, fusion = [], [], {}
        for i, layer in enumerate(self.layers):
            if i == self.first_head_block:
                cls = u[:, :1]
            if isinstance(layer, PlainLayer):
                u = layer(u)
                s = u[:, 1:]
            else:
                u, s, key, value = layer(u, s)
                if i >= self.first_head_block:
                    keys.append(key)
                    values.append(value)
            if i + 1 in self.fusion_layers:
                fusion[i + 1] = self._as_map(u[:, 1:])
        first, second, third = (fusion[layer] for layer in self.fusion_layers)
        return ClipFeatures(
            fusion=(first, second, third),
            cls=cls,
            head_keys=torch.stack(keys, dim=1),
            head_values=torch.stack(values, dim=1),
            dense=self._as_map(self.head.embed(s)),
        )

    def _as_map(self, tokens: Tensor) -> Tensor:
        """(B, h·w, C) -> (B, C, h, w)."""
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *self.grid)
