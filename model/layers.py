"""Small layers the published decoder is made of, with the attribute names its checkpoints use."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import packed_attention


class Mlp(nn.Module):
    """Linear layers with ReLU between them (`layers.0`, `layers.1`, …)."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, depth: int = 3) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (depth - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def hidden(self, x: Tensor) -> Tensor:
        """All layers but the last, ReLU after each."""
        for layer in list(self.layers)[:-1]:
            x = F.relu(layer(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers[-1](self.hidden(x))
        return result


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a (B, C, H, W) map, eps 1e-6."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        last = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return last.permute(0, 3, 1, 2)


class NormedConv(nn.Conv2d):
    """A convolution without bias, followed by GroupNorm under the name `norm`."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, groups: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(groups, channels_out)


class SelfAttentionLayer(nn.Module):
    """Self-attention over the queries, post-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, query_position: Tensor) -> Tensor:
        q = x + query_position
        result: Tensor = self.norm(x + packed_attention(self.self_attn, q, q, x))
        return result


class CrossAttentionLayer(nn.Module):
    """Attention from the queries to a feature map, post-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, query_position: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        attended = packed_attention(self.multihead_attn, x + query_position, key, value, bias)
        result: Tensor = self.norm(x + attended)
        return result


class FeedForwardLayer(nn.Module):
    """Two linear layers with ReLU, post-norm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x + self.linear2(F.relu(self.linear1(x))))
        return result
