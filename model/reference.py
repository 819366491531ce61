"""EBSeg in the order the published code computes it: slow, and the yardstick for everything else.

Same weights, other arithmetic: all ten predictions in full, mask attention ten times with queries, CLS and patches in
one sequence and both streams, bilinear resizing before the 1×1 convolutions. Tests hold the restructured model
against it, and `ebseg bench compare` takes it as the baseline. Library calls are those of the published code
(nn.MultiheadAttention's own forward, F.interpolate, F.adaptive_max_pool2d, grid sampling as in its CPU fallback).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from segment_anything.modeling.image_encoder import Block
from torch import Tensor, nn
from torch.nn import functional as F

from ..contract import CANVAS_DIVISOR
from .clip_image import SplitBlock
from .deformable import LEVELS
from .ebseg import EBSeg
from .positions import resize_grid, sine_positions
from .preprocess import CLIP_MEAN, CLIP_STD, SAM_MEAN, SAM_STD

CUT_OFF = -100.0  # the published bias of what a query must not see


class ReferenceOutput(NamedTuple):
    """Every intermediate the goldens name, for one picture."""

    clip_input: Tensor
    sam_input: Tensor
    clip_features: dict[int, Tensor]
    sam_features: list[Tensor]
    mask_features: Tensor
    predictions: list[dict[str, Tensor]]
    """masks (B, Q, h, w), embeddings_a (B, Q, D), bias (B, M, Q, h, w), embeddings_b (B, Q, D)."""
    dense: Tensor
    embeddings_d: Tensor
    class_probabilities: Tensor


@torch.no_grad()
def segment_in_published_order(model: EBSeg, picture: Tensor, text_embeddings: Tensor, seen: Tensor) -> ReferenceOutput:
    """Everything before the label map.

    Args:
        model: the weights.
        picture: (3, H, W) uint8 RGB, of any size.
        text_embeddings: (N + 1, D) unit rows, background last. seen: (N,) 0/1.
    """
    clip_input = _normalise_and_pad(picture, CLIP_MEAN, CLIP_STD)
    sam_input = _normalise_and_pad(picture, SAM_MEAN, SAM_STD)
    clip_input = F.interpolate(clip_input, scale_factor=model.config.clip_input_scale, mode="bilinear")
    clip = _clip_trunk(model, clip_input)
    sam = _sam(model, sam_input)
    features, mask_features = _pixel_decoder(model, sam, clip)
    predictions = _masked_decoder(model, features, mask_features)
    dense = torch.empty(0)
    for prediction in predictions:
        prediction["embeddings_b"], dense = _clip_head(model, clip, prediction["bias"])
    last = predictions[-1]
    on_grid = F.interpolate(last["masks"], size=dense.shape[-2:], mode="bilinear").sigmoid() > 0.5
    weight = on_grid / (on_grid.sum(dim=(-1, -2), keepdim=True) + 1e-8)
    pooled = torch.einsum("bnhw,bchw->bnc", weight, dense)
    text = model.logit_scale * text_embeddings
    logits = [p[key] @ text.T for p in predictions for key in ("embeddings_a", "embeddings_b")][-2:]
    return ReferenceOutput(
        clip_input=clip_input,
        sam_input=sam_input,
        clip_features={layer: clip.maps[layer] for layer in model.config.fusion_layers},
        sam_features=sam,
        mask_features=mask_features,
        predictions=predictions,
        dense=dense,
        embeddings_d=pooled,
        class_probabilities=_balance(model, logits[0], logits[1], pooled @ text.T, seen),
    )


def dense_label_map(
    mask_logits: Tensor, class_probabilities: Tensor, size: tuple[int, int], output_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Labels and scores as published, with every array dense.

    Args:
        mask_logits: (Q, h, w) at a quarter of the padded picture.
        class_probabilities: (Q, N).
        size: the picture before padding. output_size: the label map's.

    Returns:
        Labels (H, W) and scores (N, H, W).
    """
    padded = (mask_logits.shape[-2] * 4, mask_logits.shape[-1] * 4)
    masks = F.interpolate(mask_logits[None], size=padded, mode="bilinear", align_corners=False)
    masks = masks[:, :, : size[0], : size[1]]
    masks = F.interpolate(masks, size=output_size, mode="bilinear", align_corners=False)[0].sigmoid()
    scores = torch.einsum("qc,qhw->chw", class_probabilities, masks)
    return scores.argmax(dim=0), scores


class _Trunk(NamedTuple):
    maps: dict[int, Tensor]
    cls: Tensor
    surgery: Tensor


def _normalise_and_pad(picture: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    x = (picture.float() - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % CANVAS_DIVISOR, 0, -height % CANVAS_DIVISOR))[None]


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _split_block(block: SplitBlock, s: Tensor, u: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both streams through one block; bias (B, M, N, N) for either attention."""
    attention = block.attn
    q, k, v = (_heads(p, attention.heads) for p in attention.qkv(block.ln_1(u)).chunk(3, dim=-1))
    scale = q.shape[-1] ** -0.5
    scores = q @ k.transpose(-2, -1) * scale
    surgery = v @ v.transpose(-2, -1) * scale
    if bias is not None:
        scores, surgery = scores + bias, surgery + bias
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    surgery = (surgery.softmax(-1) @ v).transpose(1, 2).flatten(2)
    u = u + attention.proj(mixed)
    u = u + block.mlp(block.ln_2(u))
    return s + attention.proj(surgery), u


def _clip_trunk(model: EBSeg, picture: Tensor) -> _Trunk:
    trunk = model.clip_visual_extractor
    x = trunk.conv1(picture)
    grid = (x.shape[2], x.shape[3])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat((trunk.class_embedding.expand(x.shape[0], 1, -1), x), dim=1) + trunk.positions(grid)
    u = s = trunk.ln_pre(x)
    maps = {0: _as_map(u, grid)}
    for i, block in enumerate(trunk.resblocks, start=1):
        if isinstance(block, SplitBlock):
            s, u = _split_block(block, s, u)
        else:
            u = s = block(u)
        maps[i] = _as_map(u, grid)
    cls, surgery = u[:, :1], s
    # Variants that fuse features of the head blocks: patches and CLS there, without queries.
    for i, block in enumerate(model.clip_rec_head.resblocks, start=len(maps)):
        if i <= max(model.config.fusion_layers):
            assert isinstance(block, SplitBlock)
            s, u = _split_block(block, s, u)
            maps[i] = _as_map(u, grid)
    return _Trunk(maps=maps, cls=cls, surgery=surgery)


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, 1 + h·w, C), CLS first -> (B, C, h, w) of the patches."""
    patches: Tensor = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
    return patches


def _clip_head(model: EBSeg, clip: _Trunk, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One prediction's mask attention: [queries, CLS, patches] through the head, both streams."""
    head = model.clip_rec_head
    config = model.config
    patches = clip.maps[config.first_head_block]
    grid = (patches.shape[2], patches.shape[3])
    queries = config.queries
    pooled = F.adaptive_max_pool2d(bias.flatten(1, 2), grid).unflatten(1, bias.shape[1:3]).flatten(3)
    tokens = queries + 1 + pooled.shape[-1]
    full = pooled.new_zeros(*bias.shape[:2], tokens, tokens)
    full[..., :queries] = CUT_OFF
    own = torch.arange(queries)
    full[..., own, own] = 0
    full[..., :queries, queries] = CUT_OFF
    full[..., :queries, queries + 1 :] = pooled
    u = torch.cat((clip.cls.expand(-1, queries, -1), clip.cls, patches.flatten(2).transpose(1, 2)), dim=1)
    s = torch.cat((clip.surgery[:, :1].expand(-1, queries, -1), clip.surgery), dim=1)
    for block in head.resblocks:
        assert isinstance(block, SplitBlock)
        s, u = _split_block(block, s, u, full)
    dense = head.embed(s[:, queries:])[:, 1:]
    return head.embed(u[:, :queries]), dense.transpose(1, 2).unflatten(2, grid)


def _sam(model: EBSeg, picture: Tensor) -> list[Tensor]:
    """res2..res5: SAM's blocks' own forward, then bilinear to 1/4, 1/8, 1/16, 1/32, halving by halving."""
    backbone = model.backbone
    x = backbone.patch_embed(picture)
    x = x + resize_grid(backbone.pos_embed[0], (x.shape[1], x.shape[2]))
    outputs = []
    for i, block in enumerate(backbone.blocks):
        assert isinstance(block, Block)
        x = block(x)
        if i in model.config.sam.global_blocks:
            outputs.append(x.permute(0, 3, 1, 2))
    return [
        _to_stride(output, model.config.sam.patch / stride)
        for output, stride in zip(outputs, (4, 8, 16, 32), strict=True)
    ]


def _to_stride(feature: Tensor, scale: float) -> Tensor:
    while scale < 0.5:
        feature, scale = F.interpolate(feature, scale_factor=0.5, mode="bilinear"), 2 * scale
    return F.interpolate(feature, scale_factor=scale, mode="bilinear")


def _pixel_decoder(model: EBSeg, sam: list[Tensor], clip: _Trunk) -> tuple[list[Tensor], Tensor]:
    head, weights = model.sem_seg_head, model.sem_seg_head.pixel_decoder
    fused = list(sam)
    for i, layer in enumerate(model.config.fusion_layers):
        feature = head.clip_fusion_layers[i](clip.maps[layer])
        fused[i + 1] = fused[i + 1] + F.interpolate(feature, size=fused[i + 1].shape[-2:], mode="bilinear")
    sources = [weights.input_proj[i](feature) for i, feature in enumerate(reversed(fused[1:]))]
    sizes = [(x.shape[2], x.shape[3]) for x in sources]
    level_embed = weights.transformer.level_embed
    x = torch.cat([source.flatten(2).transpose(1, 2) for source in sources], dim=1)
    position = torch.cat([sine_positions(s, x.shape[-1]).flatten(1).T + level_embed[i] for i, s in enumerate(sizes)])
    reference = torch.cat([_cell_centres(size) for size in sizes])
    for layer in _layers(weights.transformer.encoder):
        attended = _deformable(layer.self_attn, x + position, x, reference, sizes)
        x = layer.norm1(x + attended)
        x = layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))
    maps = [
        part.transpose(1, 2).unflatten(2, size)
        for part, size in zip(x.split([h * w for h, w in sizes], dim=1), sizes, strict=True)
    ]
    lateral = weights.adapter_1.norm(weights.adapter_1(fused[0]))
    fine = lateral + F.interpolate(maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
    fine = F.relu(weights.layer_1.norm(weights.layer_1(fine)))
    return maps, weights.mask_features(fine)


def _layers(encoder: nn.Module) -> Any:
    return encoder.layers


def _cell_centres(size: tuple[int, int]) -> Tensor:
    y, x = torch.meshgrid(
        torch.linspace(0.5, size[0] - 0.5, size[0]) / size[0],
        torch.linspace(0.5, size[1] - 0.5, size[1]) / size[1],
        indexing="ij",
    )
    return torch.stack((x.flatten(), y.flatten()), dim=1)


def _deformable(
    attention: Any, query: Tensor, value: Tensor, reference: Tensor, sizes: list[tuple[int, int]]
) -> Tensor:
    """Sampling of all levels, stacked, then one weighted sum: the published fallback without CUDA."""
    batch, tokens, width = query.shape
    heads, points = attention.heads, attention.points
    value = attention.value_proj(value).reshape(batch, tokens, heads, -1)
    offsets = attention.sampling_offsets(query).reshape(batch, tokens, heads, LEVELS, points, 2)
    weights = attention.attention_weights(query).reshape(batch, tokens, heads, -1).softmax(-1)
    normaliser = torch.tensor([[w, h] for h, w in sizes], dtype=query.dtype)
    grids = 2 * (reference[None, :, None, None, None] + offsets / normaliser[None, None, None, :, None]) - 1
    sampled = []
    for level, (part, size) in enumerate(zip(value.split([h * w for h, w in sizes], dim=1), sizes, strict=True)):
        maps = part.flatten(2).transpose(1, 2).reshape(batch * heads, width // heads, *size)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, tokens, LEVELS * points)
    mixed = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1).view(batch, width, tokens)
    result: Tensor = attention.output_proj(mixed.transpose(1, 2))
    return result


def _masked_decoder(model: EBSeg, features: list[Tensor], mask_features: Tensor) -> list[dict[str, Tensor]]:
    weights, config = model.sem_seg_head.predictor, model.config
    sizes = [(f.shape[2], f.shape[3]) for f in features]
    positions = [sine_positions(size, config.hidden_dim).flatten(1).T for size in sizes]
    sources = [feature.flatten(2).transpose(1, 2) + weights.level_embed.weight[i] for i, feature in enumerate(features)]
    batch = mask_features.shape[0]
    place = weights.query_embed.weight.expand(batch, -1, -1)
    x = weights.query_feat.weight.expand(batch, -1, -1)
    projected = weights.attn_proj(mask_features.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2).contiguous()
    projected = projected.unflatten(1, (config.clip.heads, config.mask_dim))
    predictions = [_predict(model, x, mask_features, projected)]
    for i in range(config.decoder_layers):
        level = i % LEVELS
        blocked = F.interpolate(predictions[-1]["masks"], size=sizes[level], mode="bilinear", align_corners=False)
        blocked = blocked.sigmoid().flatten(2) < 0.5
        blocked = (blocked & ~blocked.all(-1, keepdim=True)).repeat_interleave(config.heads, dim=0)
        cross: Any = weights.transformer_cross_attention_layers[i]
        own: Any = weights.transformer_self_attention_layers[i]
        ffn: Any = weights.transformer_ffn_layers[i]
        key = sources[level] + positions[level]
        x = cross.norm(x + cross.multihead_attn(x + place, key, sources[level], attn_mask=blocked)[0])
        x = own.norm(x + own.self_attn(x + place, x + place, x)[0])
        x = ffn.norm(x + ffn.linear2(F.relu(ffn.linear1(x))))
        predictions.append(_predict(model, x, mask_features, projected))
    return predictions


def _predict(model: EBSeg, query: Tensor, mask_features: Tensor, projected: Tensor) -> dict[str, Tensor]:
    weights = model.sem_seg_head.predictor
    h = weights.decoder_norm(query)
    e = weights.mask_embed(h)
    masks = torch.einsum("bqc,bchw->bqhw", e, mask_features)
    bias = torch.einsum("bqc,bnchw->bnqhw", e, projected)
    bias = weights.bias_scaling(bias[..., None]).squeeze(-1)
    inside = (masks > 0).to(masks.dtype)
    share = inside / (inside.sum(dim=(-1, -2), keepdim=True) + 1e-8)
    pooled = weights.pool_proj(torch.einsum("bchw,bqhw->bqc", mask_features, share))
    a = F.normalize(weights.mask_embed1(pooled + h), dim=-1)
    return {"masks": masks, "bias": bias, "embeddings_a": weights.logit_scale.clamp(max=10) * a}


def _balance(model: EBSeg, logits_a: Tensor, logits_b: Tensor, logits_d: Tensor, seen: Tensor) -> Tensor:
    config = model.config
    a, b, d = (logits[..., :-1].softmax(-1) for logits in (logits_a, logits_b, logits_d))
    old = torch.log(1e-8 + a ** (1 - config.alpha - config.gamma) * d**config.alpha * b**config.gamma)
    new = torch.log(1e-8 + a ** (1 - config.beta - config.gamma) * d**config.beta * b**config.gamma)
    mixed = (old * seen + new * (1 - seen)).softmax(-1)
    background = logits_a.softmax(-1)[..., -1:]
    joint = torch.cat((mixed * (1 - background), background), dim=-1)
    return torch.log(joint + 1e-8).softmax(-1)[..., :-1]
