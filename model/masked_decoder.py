"""The masked transformer decoder: queries become masks, embeddings A and the bias of mask attention.

Layer i attends to level i mod 3 where the last prediction's mask allows it. Only the last prediction is read by
anybody at inference; of the earlier ones nothing but the attention mask is needed, and since a mask is linear in the
mask features, it is taken from features that were resized once. Source: Cheng et al. 2022 (Mask2Former); EBSeg.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..contract import Size
from .config import EbsegConfig
from .deformable import LEVELS
from .layers import CrossAttentionLayer, FeedForwardLayer, Mlp, SelfAttentionLayer
from .pixel_decoder import PixelFeatures
from .positions import sine_positions
from .resize import AdaptiveMaxPool, bilinear

BLOCKED = -3e4  # far below any attention score, and finite in FP16
LOGIT_SCALE_LIMIT = 10.0


class PredictorWeights(nn.Module):
    """Published names under `sem_seg_head.predictor`."""

    def __init__(self, config: EbsegConfig) -> None:
        super().__init__()
        width, depth = config.hidden_dim, config.decoder_layers
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(width, config.heads) for _ in range(depth)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(width, config.heads) for _ in range(depth)
        )
        self.transformer_ffn_layers = nn.ModuleList(FeedForwardLayer(width, config.decoder_ffn) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width)
        self.query_feat = nn.Embedding(config.queries, width)
        self.query_embed = nn.Embedding(config.queries, width)
        self.level_embed = nn.Embedding(LEVELS, width)
        self.mask_embed = Mlp(width, width, config.mask_dim)
        self.pool_proj = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.mask_embed1 = Mlp(width, width, config.clip.embedding_dim)
        self.logit_scale = nn.Parameter(torch.ones([]))
        self.attn_proj = Mlp(config.mask_dim, config.mask_dim, config.mask_dim * config.clip.heads)
        self.bias_scaling = nn.Linear(1, 1)


class Prediction(NamedTuple):
    """One prediction of the decoder."""

    mask_logits: Tensor
    """(B, Q, H/4, W/4)."""
    mask_embeddings: Tensor
    """e: (B, Q, C); mask_logits = e · F."""
    embeddings_a: Tensor
    """(B, Q, D)."""


class MaskedDecoder(nn.Module):
    """The decoder for one canvas size."""

    def __init__(self, weights: PredictorWeights, config: EbsegConfig, size: Size, clip_grid: tuple[int, int]) -> None:
        super().__init__()
        self.weights = weights
        self.clip_heads = config.clip.heads
        self.sizes = [(size.height // stride, size.width // stride) for stride in (32, 16, 8)]
        self.pool = AdaptiveMaxPool((size.height // 4, size.width // 4), clip_grid)
        for level, level_size in enumerate(self.sizes):
            position = sine_positions(level_size, config.hidden_dim).flatten(1).T
            self.register_buffer(f"position_{level}", position, persistent=False)

    def forward(self, features: PixelFeatures) -> Prediction:
        """PixelFeatures -> the last prediction."""
        query = self.queries(features)[-1]
        return self.predict(query, features.mask_features)

    def queries(self, features: PixelFeatures) -> list[Tensor]:
        """Every state of the queries, (B, Q, C): before the first layer and after each."""
        weights = self.weights
        batch = features.mask_features.shape[0]
        small = [bilinear(features.mask_features, size).flatten(2) for size in self.sizes]
        values, keys = [], []
        for level, feature in enumerate(features.levels):
            value = feature.flatten(2).transpose(1, 2) + weights.level_embed.weight[level]
            values.append(value)
            keys.append(value + self.get_buffer(f"position_{level}"))
        position = weights.query_embed.weight.expand(batch, -1, -1)
        x = weights.query_feat.weight.expand(batch, -1, -1)
        states = [x]
        for i, (cross, self_attention, ffn) in enumerate(
            zip(
                weights.transformer_cross_attention_layers,
                weights.transformer_self_attention_layers,
                weights.transformer_ffn_layers,
                strict=True,
            )
        ):
            level = i % LEVELS
            bias = attention_bias(weights.mask_embed(weights.decoder_norm(x)) @ small[level])
            x = cross(x, position, keys[level], values[level], bias)
            x = ffn(self_attention(x, position))
            states.append(x)
        return states

    def predict(self, query: Tensor, mask_features: Tensor) -> Prediction:
        """A query state (B, Q, C) -> masks and A = min(logit_scale, 10) · normalise(mask_embed1(pool_proj(p) + h))."""
        weights = self.weights
        h = weights.decoder_norm(query)
        e = weights.mask_embed(h)
        flat = mask_features.flatten(2)
        logits = e @ flat
        pooled = pool_masks(logits, flat)
        a = weights.mask_embed1(weights.pool_proj(pooled) + h)
        scale = weights.logit_scale.clamp(max=LOGIT_SCALE_LIMIT)
        return Prediction(
            mask_logits=logits.reshape(*logits.shape[:2], *mask_features.shape[2:]),
            mask_embeddings=e,
            embeddings_a=scale * F.normalize(a, dim=-1),
        )

    def mask_attention_bias(self, e: Tensor, mask_features: Tensor) -> Tensor:
        """The bias of mask attention, pooled to CLIP's grid: (B, M, Q, h·w).

        Published: maxpool(s · (e · attn_proj(F)) + t) per CLIP head, attn_proj's last layer giving C × M channels for
        every pixel. Here that layer is multiplied into e, which has Q rows instead of H·W/16, and so are s and t:
        the affine map before the pooling costs nothing and is right for s of either sign.
        """
        weights = self.weights
        batch, queries, width = e.shape
        last: Any = weights.attn_proj.layers[-1]
        s, t = weights.bias_scaling.weight.reshape(()), weights.bias_scaling.bias
        per_head = last.weight.reshape(self.clip_heads, width, width)
        folded = e[:, None] @ per_head * s  # (B, M, Q, C)
        constant = e @ last.bias.reshape(self.clip_heads, width).T * s + t  # (B, Q, M)
        hidden = weights.attn_proj.hidden(mask_features.permute(0, 2, 3, 1).flatten(1, 2))  # (B, H·W/16, C)
        scores = folded.flatten(1, 2) @ hidden.transpose(1, 2)
        pooled = self.pool(scores.reshape(batch, self.clip_heads * queries, *mask_features.shape[2:]))
        pooled = pooled.reshape(batch, self.clip_heads, queries, -1)
        result: Tensor = pooled + constant.transpose(1, 2)[..., None]
        return result


def attention_bias(mask_logits: Tensor) -> Tensor:
    """Where a query may not look: (B, Q, S) mask logits -> (B, 1, Q, S), 0 or BLOCKED.

    A place is blocked where sigmoid < 0.5; a row with every place blocked blocks nothing.
    """
    nothing_allowed = mask_logits.amax(dim=-1, keepdim=True) < 0
    blocked = (mask_logits < 0) & ~nothing_allowed
    return (blocked.to(mask_logits.dtype) * BLOCKED)[:, None]


def pool_masks(mask_logits: Tensor, features: Tensor) -> Tensor:
    """Mean of the features where a mask is positive.

    Args:
        mask_logits: (B, Q, S).
        features: (B, C, S).

    Returns:
        (B, Q, C). A query whose mask is empty gives zeros: the count is clamped to 1, which equals the published
        "+ 1e-8" and, unlike it, survives graph optimisers and FP16.
    """
    inside = (mask_logits > 0).to(features.dtype)
    count = inside.sum(dim=-1, keepdim=True).clamp(min=1)
    return inside @ features.transpose(1, 2) / count
