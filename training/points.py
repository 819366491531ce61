"""Masks read at points: Mask2Former computes its costs and losses there instead of at every pixel.

Source: Kirillov et al. 2020 (PointRend), Cheng et al. 2022 (Mask2Former).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps at points, bilinearly.

    Args:
        maps: (K, H, W).
        points: (K, P, 2) as (x, y) in 0..1 of the map's extent.

    Returns:
        (K, P).
    """
    grid = points[:, :, None] * 2 - 1
    return F.grid_sample(maps[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0, :, 0]


def random_points(
    count: int, number: int, generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """(count, number, 2), uniform in 0..1; drawn on the CPU, so that a GPU gets the same points."""
    return torch.rand(count, number, 2, generator=generator).to(device)


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor,
    number: int,
    *,
    oversample: float = 3.0,
    importance: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Points where the masks are least certain, and some at random.

    Args:
        mask_logits: (K, h, w).
        number: points per mask.
        oversample: candidates per point.
        importance: share of the points taken from the candidates by |logit|, the smallest first.
        generator: source of randomness; torch's own unless given.

    Returns:
        (K, number, 2) as (x, y) in 0..1.
    """
    count = len(mask_logits)
    device = mask_logits.device
    candidates = random_points(count, int(number * oversample), generator, device)
    certainty = sample_points(mask_logits, candidates).abs()
    chosen = certainty.topk(int(number * importance), dim=1, largest=False).indices
    picked = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat((picked, random_points(count, number - picked.shape[1], generator, device)), dim=1)
