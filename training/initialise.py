"""First weights of what EBSeg training learns; CLIP's (and, for B and L, SAM's) come from their checkpoints."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..model.deformable import LEVELS, DeformableAttention
from ..model.ebseg import EBSeg


@torch.no_grad()
def initialise(model: EBSeg, seed: int, *, sam: bool) -> None:
    """Initialise the decoder, the background embedding and, when it is to train from nothing, the SAM encoder.

    Linear layers and convolutions: Xavier; SAM's linear layers: normal, σ 0.02, as ViTs start. Deformable sampling
    starts on a ring around each token, a direction per head and a radius per point (Zhu et al. 2021).
    """
    torch.manual_seed(seed)
    for module in model.sem_seg_head.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention):
            assert module.in_proj_weight is not None
            nn.init.xavier_uniform_(module.in_proj_weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    for module in model.sem_seg_head.modules():
        if isinstance(module, DeformableAttention):
            _sample_on_rings(module)
    nn.init.normal_(model.sem_seg_head.pixel_decoder.transformer.level_embed)
    predictor = model.sem_seg_head.predictor
    nn.init.ones_(predictor.logit_scale)
    nn.init.ones_(predictor.bias_scaling.weight)  # the bias of mask attention starts as it is
    nn.init.zeros_(predictor.bias_scaling.bias)
    # not zero: the embedding is normalised, and the gradient of that has no end at 0
    nn.init.normal_(model.ov_classifier.bg_embed, std=model.config.clip.embedding_dim**-0.5)
    if sam:
        for module in model.backbone.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(model.backbone.pos_embed, std=0.02)


def _sample_on_rings(attention: DeformableAttention) -> None:
    heads, points = attention.heads, attention.points
    nn.init.zeros_(attention.sampling_offsets.weight)
    angle = torch.arange(heads) * (2 * math.pi / heads)
    direction = torch.stack((angle.cos(), angle.sin()), -1)
    direction = direction / direction.abs().max(-1, keepdim=True).values
    radius = torch.arange(1, points + 1).reshape(1, 1, points, 1)
    ring = direction[:, None, None] * radius  # (heads, 1, points, 2)
    attention.sampling_offsets.bias.copy_(ring.expand(-1, LEVELS, -1, -1).flatten())
    nn.init.zeros_(attention.attention_weights.weight)
