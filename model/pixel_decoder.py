"""AdaB's fusion and pixel decoder: SAM's and CLIP's features become three maps and the mask features F.

Everything linear that acts on single pixels (1×1 convolutions) commutes with bilinear resampling, so it runs before
upsampling: the 768-channel maps at 1/4 and 1/8 of the published code never exist.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..contract import MASK_STRIDE, Size
from .config import EbsegConfig
from .deformable import LEVELS, DeformableEncoder, centres
from .layers import ChannelNorm, NormedConv
from .positions import sine_positions
from .resize import bilinear


class PixelFeatures(NamedTuple):
    """What the masked transformer decoder reads."""

    levels: list[Tensor]
    """(B, C, h, w) at 1/32, 1/16, 1/8."""
    mask_features: Tensor
    """F: (B, C, H/4, W/4)."""


class PixelDecoderWeights(nn.Module):
    """Published names: input_proj, transformer, adapter_1, layer_1, mask_features."""

    input_proj: Any  # Sequential of convolution and norm, in a ModuleList

    def __init__(self, config: EbsegConfig) -> None:
        super().__init__()
        width, groups = config.hidden_dim, config.norm_groups
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(config.sam.width, width, 1), nn.GroupNorm(groups, width)) for _ in range(LEVELS)
        )
        self.transformer = DeformableEncoder(
            width, config.heads, config.pixel_points, config.pixel_ffn, config.pixel_layers
        )
        self.mask_features = nn.Conv2d(width, config.mask_dim, 1)
        self.adapter_1 = NormedConv(config.sam.width, width, 1, groups)
        self.layer_1 = NormedConv(width, width, 3, groups)


def fusion_layers(config: EbsegConfig) -> nn.ModuleList:
    """Channel norm and 1×1 convolution from CLIP's width to SAM's, for res3, res4 and res5."""
    return nn.ModuleList(
        nn.Sequential(ChannelNorm(config.clip.width), nn.Conv2d(config.clip.width, config.sam.width, 1))
        for _ in range(3)
    )


class PixelDecoder(nn.Module):
    """Fusion and pixel decoder for one canvas size."""

    position: Tensor
    reference: Tensor

    def __init__(self, weights: PixelDecoderWeights, fusion: nn.ModuleList, config: EbsegConfig, size: Size) -> None:
        super().__init__()
        self.weights = weights
        self.fusion = fusion
        self.sam_patch = config.sam.patch
        self.sizes = [(size.height // stride, size.width // stride) for stride in (32, 16, 8)]
        self.mask_size = (size.height // MASK_STRIDE, size.width // MASK_STRIDE)
        position = torch.cat([sine_positions(s, config.hidden_dim).flatten(1).T for s in self.sizes])
        level = torch.cat(
            [
                weights.transformer.level_embed[i].expand(height * width, -1)
                for i, (height, width) in enumerate(self.sizes)
            ]
        )
        self.register_buffer("position", position + level, persistent=False)
        self.register_buffer("reference", centres(self.sizes), persistent=False)

    def forward(self, clip_fusion: tuple[Tensor, ...], sam: tuple[Tensor, ...]) -> PixelFeatures:
        """Three CLIP fusion features (B, C, h, w) and SAM's four (B, C', H/p, W/p) -> PixelFeatures."""
        weights = self.weights
        # res5, res4, res3: SAM's features at 1/32, 1/16 and 1/8, each plus its CLIP feature. Halving bilinearly is a
        # mean of 2×2; what has to grow does so after the convolution.
        sources = (self._halved(sam[3], 32), self._halved(sam[2], 16), sam[1])
        tokens = []
        for i, (source, clip) in enumerate(zip(sources, reversed(clip_fusion), strict=True)):
            conv, norm = weights.input_proj[i]
            fuse = self.fusion[2 - i]
            from_sam = bilinear(F.conv2d(source, conv.weight), self.sizes[i])
            from_clip = bilinear(F.conv2d(fuse(clip), conv.weight, conv.bias), self.sizes[i])
            tokens.append(norm(from_sam + from_clip).flatten(2).transpose(1, 2))
        x = torch.cat(tokens, dim=1)
        for layer in weights.transformer.encoder.layers:  # type: ignore[union-attr]
            x = layer(x, self.position, self.reference, self.sizes)

        levels = []
        start = 0
        for height, width in self.sizes:
            part = x[:, start : start + height * width].transpose(1, 2)
            levels.append(part.reshape(*part.shape[:2], height, width))
            start += height * width
        lateral = bilinear(F.conv2d(sam[0], weights.adapter_1.weight), self.mask_size)
        fine = weights.adapter_1.norm(lateral) + bilinear(levels[-1], self.mask_size)
        fine = F.relu(weights.layer_1.norm(F.conv2d(fine, weights.layer_1.weight, padding=1)))
        return PixelFeatures(levels=levels, mask_features=weights.mask_features(fine))

    def _halved(self, feature: Tensor, stride: int) -> Tensor:
        factor = stride // self.sam_patch
        return F.avg_pool2d(feature, factor) if factor > 1 else feature
