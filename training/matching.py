"""Which query answers for which mask: the assignment of least cost over class, mask and dice. Source: Mask2Former."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .points import random_points, sample_points

NO_NAME = -1
"""Class of a target whose mask is taught and whose name is not."""


class Targets(NamedTuple):
    """The truth of one picture: one mask per class that occurs."""

    classes: Tensor
    """(K,) int64, index into the training classes, or NO_NAME."""
    masks: Tensor
    """(K, H, W) float32, 0 or 1."""


@dataclass(frozen=True, kw_only=True)
class MatchCosts:
    """Weights of the three costs."""

    classification: float = 2.0
    mask: float = 5.0
    dice: float = 5.0


def pairwise_mask_cost(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean binary cross-entropy of every query with every mask: (Q, P) logits, (K, P) 0..1 -> (Q, K)."""
    points = logits.shape[1]
    positive = F.softplus(-logits) @ truth.T
    negative = F.softplus(logits) @ (1 - truth).T
    return (positive + negative) / points


def pairwise_dice_cost(logits: Tensor, truth: Tensor) -> Tensor:
    """1 − (2 Σ p·t + 1) / (Σ p + Σ t + 1) of every query with every mask: (Q, P), (K, P) -> (Q, K)."""
    probability = logits.sigmoid()
    overlap = 2 * probability @ truth.T
    total = probability.sum(1)[:, None] + truth.sum(1)[None]
    return 1 - (overlap + 1) / (total + 1)


@torch.no_grad()
def match(
    class_logits: Tensor,
    mask_logits: Tensor,
    targets: Targets,
    *,
    points: int,
    costs: MatchCosts,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Assign masks to queries.

    Args:
        class_logits: (Q, N + 1) of one picture. mask_logits: (Q, h, w).
        targets: K masks, K ≤ Q.
        points: number of random points; the same for every query and mask.
        costs: weights.
        generator: source of randomness; torch's own unless given.

    Returns:
        Query indices (K,) and mask indices (K,), pairwise.
    """
    from scipy.optimize import linear_sum_assignment

    if not len(targets.classes):
        nothing = torch.zeros(0, dtype=torch.long)
        return nothing, nothing
    where = random_points(1, points, generator, mask_logits.device)
    logits = sample_points(mask_logits.float(), where.expand(len(mask_logits), -1, -1))
    truth = sample_points(targets.masks, where.expand(len(targets.masks), -1, -1))
    named = targets.classes != NO_NAME
    cost = (
        -costs.classification * class_logits.float().softmax(-1)[:, targets.classes.clamp(min=0)] * named
        + costs.mask * pairwise_mask_cost(logits, truth)
        + costs.dice * pairwise_dice_cost(logits, truth)
    )
    # a diverged run gives NaN, which scipy refuses with a message that helps nobody
    queries, masks = linear_sum_assignment(np.nan_to_num(cost.cpu().numpy(), nan=1e6, posinf=1e6, neginf=-1e6))
    return torch.from_numpy(queries), torch.from_numpy(masks)
