"""Position embeddings against their closed forms, and SAM's attention against segment_anything's own."""

from __future__ import annotations

import math

import pytest
import torch
from ebseg_deploy.model.positions import relative_table, resize_grid, sine_positions
from ebseg_deploy.model.sam_image import RelativeAttention
from segment_anything.modeling.image_encoder import Attention, get_rel_pos


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_sine_positions_closed_form() -> None:
    height, width, channels = 3, 5, 8
    found = sine_positions((height, width), channels)
    assert found.shape == (channels, height, width)
    half = channels // 2
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                place, length = (y, height) if c < half else (x, width)  # y first
                k = c % half
                angle = 2 * math.pi * (place + 1) / (length + 1e-6) / 10000 ** (2 * (k // 2) / half)
                expected = math.sin(angle) if k % 2 == 0 else math.cos(angle)
                assert float(found[c, y, x]) == pytest.approx(expected, abs=2e-6), (c, y, x)


def test_relative_table_without_resizing() -> None:
    table = noise(2 * 4 - 1, 6)
    found = relative_table(table, 4)
    for query in range(4):
        for key in range(4):
            torch.testing.assert_close(found[query, key], table[query - key + 3], rtol=0, atol=0)


@pytest.mark.parametrize("length", [3, 8, 14, 20])
def test_relative_table_resized_as_segment_anything_does(length: int) -> None:
    table = noise(2 * 8 - 1, 6)
    torch.testing.assert_close(relative_table(table, length), get_rel_pos(length, length, table))


def test_resized_grid() -> None:
    grid = noise(4, 6, 3)
    torch.testing.assert_close(resize_grid(grid, (4, 6)), grid, rtol=0, atol=1e-6)
    torch.testing.assert_close(resize_grid(torch.full((4, 6, 3), 2.5), (9, 5)), torch.full((9, 5, 3), 2.5))
    assert resize_grid(grid, (8, 5)).shape == (8, 5, 3)


@pytest.mark.parametrize("tile", [(6, 6), (4, 7), (9, 5)])
def test_relative_attention_is_segment_anythings(tile: tuple[int, int]) -> None:
    attention = Attention(16, num_heads=2, use_rel_pos=True, input_size=(6, 6))
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(noise(*parameter.shape) * 0.3)
        x = noise(3, *tile, 16)
        ours = attention.proj(RelativeAttention(attention, tile)(attention.qkv(x)))
        torch.testing.assert_close(ours, attention(x), rtol=0, atol=2e-5)
