"""The graph `adab_decoder`: both encoders' features in, masks and the three embedding sets out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import merge_heads
from .clip_image import ClipFeatures, ClipHead, SplitBlock
from .masked_decoder import MaskedDecoder, pool_masks
from .pixel_decoder import PixelDecoder
from .resize import bilinear


class AdabOutput(NamedTuple):
    """Names of the paper."""

    mask_logits: Tensor
    """(B, Q, H/4, W/4), before the sigmoid."""
    embeddings_a: Tensor
    """Fully supervised: (B, Q, D), length min(logit_scale, 10)."""
    embeddings_b: Tensor
    """Mask attention: (B, Q, D), unit length."""
    embeddings_d: Tensor
    """Frozen: (B, Q, D), the mean of unit vectors; zeros for an empty mask."""


class MaskAttentionLayer(nn.Module):
    """One head block, for query tokens alone."""

    def __init__(self, block: SplitBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """(B, Q, C), the patches' (B, M, P, d) ×2, (B, M, Q, P) -> (B, Q, C)."""
        block, attention = self.block, self.block.attn
        q, k, v = attention.project(block.ln_1(x))
        q = q * q.shape[-1] ** -0.5
        to_self = (q * k).sum(-1, keepdim=True)
        to_patches = q @ keys.transpose(-2, -1) + bias
        weight = torch.cat((to_self, to_patches), dim=-1).softmax(dim=-1)
        mixed = weight[..., :1] * v + weight[..., 1:] @ values
        x = x + attention.proj(merge_heads(mixed))
        result: Tensor = x + block.mlp(block.ln_2(x))
        return result


class MaskAttention(nn.Module):
    """B: query tokens, copies of CLS, look at the patches through the head blocks, each through its own mask.

    A query token sees itself (bias 0) and the patches (bias of the decoder), nothing else; nothing sees it. So its
    softmax joins one score with itself and h·w with cached keys. Source: EBSeg, after SAN (Xu et al. 2023).
    """

    def __init__(self, head: ClipHead) -> None:
        super().__init__()
        self.head = head
        self.layers = nn.ModuleList(MaskAttentionLayer(block) for block in head.resblocks)  # type: ignore[arg-type]

    def forward(self, cls: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Args:
            cls: (B, 1, C). keys, values: (B, L, M, h·w, d). bias: (B, M, Q, h·w).

        Returns:
            (B, Q, D), unit length.
        """
        x = cls.expand(-1, bias.shape[2], -1)
        for i, layer in enumerate(self.layers):
            x = layer(x, keys[:, i], values[:, i], bias)
        return self.head.embed(x)


class AdabDecoder(nn.Module):
    """Fusion, pixel decoder, masked decoder, mask attention and frozen pooling, for one canvas size."""

    def __init__(self, pixel_decoder: PixelDecoder, masked_decoder: MaskedDecoder, head: ClipHead) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.masked_decoder = masked_decoder
        self.mask_attention = MaskAttention(head)

    def forward(self, clip: ClipFeatures, sam: tuple[Tensor, ...]) -> AdabOutput:
        """ClipFeatures and SAM's four features -> AdabOutput."""
        features = self.pixel_decoder(clip.fusion, sam)
        prediction = self.masked_decoder(features)
        bias = self.masked_decoder.mask_attention_bias(prediction.mask_embeddings, features.mask_features)
        masks_on_grid = bilinear(prediction.mask_logits, (clip.dense.shape[2], clip.dense.shape[3])).flatten(2)
        return AdabOutput(
            mask_logits=prediction.mask_logits,
            embeddings_a=prediction.embeddings_a,
            embeddings_b=self.mask_attention(clip.cls, clip.head_keys, clip.head_values, bias),
            embeddings_d=pool_masks(masks_on_grid, clip.dense.flatten(2)),
        )


class OpenVocabHead(nn.Module):
    """The graph `open_vocab_head`: three embedding sets against text, balanced per class.

    For a seen class log(1e-8 + p_A^(1−α−γ) p_D^α p_B^γ), for a new one β instead of α; softmax over classes, times
    one minus the background's share in A's logits; then log(· + 1e-8), softmax, background dropped.
    Source: EBSeg (CVPR 2024), 'Adaptively balanced decoder', and the published code.
    """

    scale: Tensor

    def __init__(self, *, alpha: float, beta: float, gamma: float, logit_scale: float) -> None:
        super().__init__()
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.register_buffer("scale", torch.tensor(logit_scale, dtype=torch.float32), persistent=False)

    def forward(self, a: Tensor, b: Tensor, d: Tensor, text_embeddings: Tensor, seen: Tensor) -> Tensor:
        """(B, Q, D) ×3, (N + 1, D) unit rows with the background last, (N,) 0/1 -> (B, Q, N)."""
        text = (text_embeddings * self.scale).transpose(0, 1)
        logits_a = a @ text
        log_a = F.log_softmax(logits_a[..., :-1], dim=-1)
        log_b = F.log_softmax((b @ text)[..., :-1], dim=-1)
        log_d = F.log_softmax((d @ text)[..., :-1], dim=-1)
        # Powers as sums of logarithms: p ** 0 stays 1 and nothing underflows before the 1e-8.
        share_d = seen * self.alpha + (1 - seen) * self.beta
        share_a = seen * (1 - self.alpha - self.gamma) + (1 - seen) * (1 - self.beta - self.gamma)
        mixed = share_a * log_a + share_d * log_d + self.gamma * log_b
        balanced = _floored(mixed.exp())
        background = logits_a.softmax(dim=-1)[..., -1:]
        return _floored(torch.cat((balanced * (1 - background), background), dim=-1))[..., :-1]


def _floored(shares: Tensor) -> Tensor:
    """softmax(log(shares + 1e-8)) along the last axis, which is shares + 1e-8 over their sum.

    Times 1e8, because the exporter's optimiser takes 1e-8 for 0 and drops it, and where the three embedding sets
    disagree every share is below it.
    """
    raised = shares * 1e8 + 1
    return raised / raised.sum(dim=-1, keepdim=True)
