"""AdamW with weight decay where it belongs, and the schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

_EMBEDDINGS = ("positional_embedding", "class_embedding", "pos_embed", "level_embed", "query_embed", "query_feat")
_SCALARS = ("logit_scale", "bg_embed")


def adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.AdamW:
    """AdamW over what trains; no decay for embeddings, positions, norms and other one-dimensional parameters."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = parameter.ndim < 2 or id(parameter) in tables or any(part in name for part in _EMBEDDINGS + _SCALARS)
        (free if spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def poly_rate(step: int, *, base: float, steps: int, power: float = 0.9, warmup: int = 0) -> float:
    """Learning rate of `step`: base · (1 − step/steps)^power, after a linear warm-up."""
    rate = base * float((1 - min(step, steps) / steps) ** power)
    return rate * min(1.0, (step + 1) / warmup) if warmup else rate


def cosine_rate(step: int, *, base: float, steps: int, warmup: int) -> float:
    """Learning rate of `step`: half a cosine from `base` to 2 % of it, after a linear warm-up."""
    return base * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
