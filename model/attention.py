"""Attention written out, so that every exported graph carries the MatMul–Softmax–MatMul that engines recognise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, M, N, C/M)."""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, M, N, d) -> (B, N, M·d)."""
    batch, heads, tokens, head_dim = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * head_dim)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + bias) v.

    Args:
        q: (B, M, N, d). k, v: (B, M, S, d).
        bias: broadcastable to (B, M, N, S).

    Returns:
        (B, M, N, d).
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    mixed: Tensor = scores.softmax(dim=-1) @ v
    return mixed


def packed_attention(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> Tensor:
    """What `nn.MultiheadAttention` computes from its packed weights, batch first, without dropout.

    Args:
        attention: owner of in_proj_weight (3C, C), in_proj_bias and out_proj.
        query: (B, N, C). key, value: (B, S, C).
        bias: broadcastable to (B, M, N, S).

    Returns:
        (B, N, C).
    """
    weight, packed_bias = attention.in_proj_weight, attention.in_proj_bias
    assert weight is not None
    heads, width = attention.num_heads, attention.embed_dim
    if query is key and key is value:
        q, k, v = F.linear(query, weight, packed_bias).chunk(3, dim=-1)
    else:  # slices of constants fold at export; a Split would not
        q = F.linear(query, weight[:width], packed_bias[:width])
        k = F.linear(key, weight[width : 2 * width], packed_bias[width : 2 * width])
        v = F.linear(value, weight[2 * width :], packed_bias[2 * width :])
    mixed = attend(split_heads(q, heads), split_heads(k, heads), split_heads(v, heads), bias)
    result: Tensor = attention.out_proj(merge_heads(mixed))
    return result


class SplitAttention(nn.Module):
    """Attention with one `qkv` and one `proj` layer, as the published surgery and head blocks store it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def project(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) -> q, k, v, each (B, M, N, d)."""
        q, k, v = self.qkv(y).chunk(3, dim=-1)
        return split_heads(q, self.heads), split_heads(k, self.heads), split_heads(v, self.heads)

    def project_keys_values(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """k and v alone, for the block whose queries nobody reads."""
        width = y.shape[-1]
        k, v = F.linear(y, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)
        return split_heads(k, self.heads), split_heads(v, self.heads)


def causal_bias(length: int) -> Tensor:
    """(length, length) with 0 on and below the diagonal and −inf above: a token sees itself and what came before."""
    return torch.full((length, length), float("-inf")).triu(1)
