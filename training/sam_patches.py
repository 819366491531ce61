"""SAM weights for patches of another size: so that a longer training can go on with finer ones.

Source: the patch kernel as FlexiViT (Beyer et al. 2023) resizes it, by area; positions as a ViT's, bicubic; relative
positions as SAM's own, linear.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from ..model.config import SamConfig

_KERNEL = "backbone.patch_embed.proj.weight"
_POSITION = "backbone.pos_embed"


def with_patches_of(state: Mapping[str, Tensor], config: SamConfig) -> dict[str, Tensor]:
    """A model's weights with SAM's resized to the patches of `config`.

    Args:
        state: of a whole EBSeg; (C, 3, p, p) patch kernel, (1, n, n, C) positions, (2n − 1, d) relative positions.
        config: the wanted patch and picture size.

    Returns:
        The same tensors where nothing differs.
    """
    resized = dict(state)
    kernel = state[_KERNEL]
    if kernel.shape[-1] != config.patch:
        # a mean colour gives the same token, however many pixels it is spread over
        scale = (kernel.shape[-1] / config.patch) ** 2
        resized[_KERNEL] = F.interpolate(kernel, size=(config.patch, config.patch), mode="area") * scale
    side = config.image_size // config.patch
    position = state[_POSITION]
    if position.shape[1] != side:
        channels_first = position.permute(0, 3, 1, 2)
        resized[_POSITION] = F.interpolate(channels_first, size=(side, side), mode="bicubic").permute(0, 2, 3, 1)
        for block in config.global_blocks:  # a windowed one's tables are as long as its window
            for axis in "hw":
                name = f"backbone.blocks.{block}.attn.rel_pos_{axis}"
                resized[name] = F.interpolate(state[name].T[None], size=2 * side - 1, mode="linear")[0].T
    return resized
