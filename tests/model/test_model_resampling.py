"""Resampling written out for export, against torch's own."""

from __future__ import annotations

import pytest
import torch
from ebseg_deploy.model.resize import AdaptiveMaxPool, Shrink, bilinear
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

sides = st.integers(8, 60)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=60)
@given(sides, sides, st.sampled_from([0.3, 0.5, 0.7, 0.75, 0.9, 1.0]))
def test_shrink_is_interpolate_by_scale_factor(height: int, width: int, scale: float) -> None:
    if scale == 0.5:  # average pooling; canvases are multiples of 32
        height, width = height // 2 * 2, width // 2 * 2
    x = noise(2, 3, height, width)
    expected = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    # torch computes coordinates in float32: near 60 they are off by 4e-6, and neighbours differ by up to 8.
    torch.testing.assert_close(Shrink((height, width), scale)(x), expected, rtol=0, atol=1e-4)


def test_shrink_takes_coordinates_from_the_scale_and_not_from_the_sizes() -> None:
    x = torch.arange(36.0).expand(1, 1, 36, 36)
    ours = Shrink((36, 36), 0.7)(x)
    by_size = F.interpolate(x, size=(25, 25), mode="bilinear", align_corners=False)
    assert (ours - by_size).abs().max() > 0.2  # 36 · 0.7 is 25.2: the two differ
    torch.testing.assert_close(ours[0, 0, 0], ((torch.arange(25) + 0.5) / 0.7 - 0.5), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=80)
@given(sides, sides, st.integers(1, 8), st.integers(1, 8))
def test_adaptive_max_pool(height: int, width: int, rows: int, columns: int) -> None:
    x = noise(2, 2, height, width)
    expected = F.adaptive_max_pool2d(x, (rows, columns))
    torch.testing.assert_close(AdaptiveMaxPool((height, width), (rows, columns))(x), expected, rtol=0, atol=0)


def test_adaptive_max_pool_to_more_cells_than_pixels() -> None:
    """EBSeg-nano's grid may be finer than a quarter of a small canvas."""
    x = noise(1, 1, 3, 5)
    torch.testing.assert_close(AdaptiveMaxPool((3, 5), (4, 7))(x), F.adaptive_max_pool2d(x, (4, 7)), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(7, 9), (14, 18), (3, 4)])
def test_bilinear(size: tuple[int, int]) -> None:
    x = noise(1, 2, 7, 9)
    torch.testing.assert_close(bilinear(x, size), F.interpolate(x, size=size, mode="bilinear", align_corners=False))
