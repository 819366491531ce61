"""Attention written out, against torch's own and against naive loops."""

from __future__ import annotations

import math

import pytest
import torch
from ebseg_deploy.model.attention import attend, causal_bias, merge_heads, packed_attention, split_heads
from ebseg_deploy.model.deformable import LEVELS, DeformableAttention, centres
from ebseg_deploy.model.masked_decoder import BLOCKED, attention_bias, pool_masks
from torch import Tensor, nn


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_heads_split_and_merge() -> None:
    x = noise(2, 5, 12)
    assert split_heads(x, 3).shape == (2, 3, 5, 4)
    torch.testing.assert_close(split_heads(x, 3)[1, 2, 4], x[1, 4, 8:12], rtol=0, atol=0)
    torch.testing.assert_close(merge_heads(split_heads(x, 3)), x, rtol=0, atol=0)


def test_attend_is_scaled_dot_product_attention() -> None:
    q, k, v = noise(2, 3, 5, 4), noise(2, 3, 7, 4, seed=1), noise(2, 3, 7, 4, seed=2)
    bias = noise(2, 1, 5, 7, seed=3)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(attend(q, k, v, bias), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("same", [True, False])
def test_packed_attention_is_multihead_attention(same: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=True)
    nn.init.normal_(attention.in_proj_bias)
    query = noise(2, 5, 12)
    key = query if same else noise(2, 7, 12, seed=1)
    value = query if same else noise(2, 7, 12, seed=2)
    blocked = noise(2, 1, 5, key.shape[1], seed=3) > 0.5
    blocked[..., 0] = False
    mask = blocked.expand(-1, 3, -1, -1).flatten(0, 1)
    with torch.no_grad():
        expected = attention(query, key, value, attn_mask=mask)[0]
        found = packed_attention(attention, query, key, value, blocked * BLOCKED)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_causal_bias() -> None:
    bias = causal_bias(4)
    for i in range(4):
        for j in range(4):
            assert bias[i, j] == (0 if j <= i else -math.inf)


def test_attention_bias_blocks_below_one_half() -> None:
    logits = torch.tensor([[[-1.0, 0.0, 2.0, -1e-6], [-3.0, -1.0, -0.5, -2.0], [1.0, 2.0, 3.0, 4.0]]])
    expected = torch.tensor([[[BLOCKED, 0, 0, BLOCKED], [0, 0, 0, 0], [0, 0, 0, 0]]])
    torch.testing.assert_close(attention_bias(logits), expected[:, None])  # of a row blocked throughout, nothing is


def test_pool_masks() -> None:
    features = noise(1, 3, 4)
    logits = torch.tensor([[[1.0, -1.0, 2.0, 0.0], [-1.0, -1.0, -1.0, 0.0]]])  # 0 is outside: sigmoid > 0.5
    pooled = pool_masks(logits, features)
    torch.testing.assert_close(pooled[0, 0], (features[0, :, 0] + features[0, :, 2]) / 2)
    assert (pooled[0, 1] == 0).all()


def sample(level: Tensor, x: float, y: float) -> Tensor:
    """Bilinear sample of (d, h, w) at pixel coordinates, zeros outside."""
    height, width = level.shape[1:]
    total = torch.zeros(level.shape[0])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * level[:, row, column]
    return total


def test_deformable_attention_sample_by_sample() -> None:
    """Deformable DETR's definition: a token's places are its own centre plus offsets in cells of each map."""
    width, heads, points = 8, 2, 3
    sizes = [(2, 3), (3, 5), (5, 6)]
    tokens = sum(h * w for h, w in sizes)
    layer = DeformableAttention(width, heads, points)
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=i))
        query, value = noise(2, tokens, width, seed=20), noise(2, tokens, width, seed=21)
        reference = centres(sizes)
        found = layer(query, value, reference, sizes)

        offsets = layer.sampling_offsets(query).reshape(2, tokens, heads, LEVELS, points, 2)
        weights = layer.attention_weights(query).reshape(2, tokens, heads, LEVELS * points).softmax(-1)
        values = layer.value_proj(value).reshape(2, tokens, heads, width // heads)
        mixed = torch.zeros(2, tokens, heads, width // heads)
        outside = 0
        for batch in range(2):
            for token in range(0, tokens, 4):
                for head in range(heads):
                    start = 0
                    for level, (height, columns) in enumerate(sizes):
                        area = height * columns
                        level_map = values[batch, start : start + area, head].T.reshape(-1, height, columns)
                        for point in range(points):
                            dx, dy = offsets[batch, token, head, level, point].tolist()
                            x = (float(reference[token, 0]) + 1) / 2 * columns + dx - 0.5
                            y = (float(reference[token, 1]) + 1) / 2 * height + dy - 0.5
                            outside += not (0 <= x < columns and 0 <= y < height)
                            share = weights[batch, token, head, level * points + point]
                            mixed[batch, token, head] += share * sample(level_map, x, y)
                        start += area
        expected = layer.output_proj(mixed.flatten(2))
    assert outside > 20  # zeros outside are exercised
    torch.testing.assert_close(found[:, ::4], expected[:, ::4], rtol=0, atol=2e-5)


def test_centres() -> None:
    found = centres([(1, 2), (2, 1)])
    expected = torch.tensor([[-0.5, 0.0], [0.5, 0.0], [0.0, -0.5], [0.0, 0.5]])
    torch.testing.assert_close(found, expected)
