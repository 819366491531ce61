"""EBSeg variants small enough for a test: every path of B, L and nano, in milliseconds.

They are the product's own classes with other numbers; `seeded_model` gives them weights.
"""

from __future__ import annotations

import dataclasses
from functools import cache

from ebseg_deploy.model.config import ClipConfig, EbsegConfig, SamConfig
from ebseg_deploy.model.ebseg import EBSeg
from ebseg_deploy.model.seeded import seeded_model

_SAM = SamConfig(image_size=128, width=32, depth=4, heads=2, window=5, global_blocks=(0, 1, 2, 3))
"""Position embedding of 8x8, so that every canvas resizes it; global blocks alone."""

_DECODER = {"queries": 12, "hidden_dim": 32, "mask_dim": 32, "heads": 4, "norm_groups": 8, "training_classes": 5}

TINY_B = EbsegConfig(
    name="tiny-b",
    clip=ClipConfig(
        image_size=64,
        patch=16,
        width=48,
        heads=3,
        layers=5,
        embedding_dim=24,
        text_width=32,
        text_heads=2,
        text_layers=2,
    ),
    sam=SamConfig(image_size=128, width=32, depth=6, heads=2, window=5, global_blocks=(1, 2, 3, 5)),
    clip_input_scale=0.5,
    plain_blocks=1,
    surgery_blocks=2,
    fusion_layers=(1, 2, 3),
    alpha=0.09,
    beta=0.3,
    gamma=0.7,
    decoder_layers=4,
    decoder_ffn=64,
    pixel_layers=2,
    pixel_ffn=64,
    pixel_points=2,
    **_DECODER,
)
"""As B: plain, surgery and head blocks; windows of 5, which no canvas of multiples of 32 divides; the levels of
the decoder come round (4 layers)."""

TINY_L = EbsegConfig(
    name="tiny-l",
    clip=ClipConfig(
        image_size=84,
        patch=14,
        width=64,
        heads=4,
        layers=6,
        embedding_dim=32,
        text_width=32,
        text_heads=2,
        text_layers=2,
    ),
    sam=_SAM,
    clip_input_scale=0.7,
    plain_blocks=2,
    surgery_blocks=2,
    fusion_layers=(2, 3, 4),
    alpha=0.12,
    beta=0.4,
    gamma=0.6,
    decoder_layers=3,
    decoder_ffn=64,
    pixel_layers=1,
    pixel_ffn=64,
    **_DECODER,
)
"""As L: scale 0.7 and patches of 14, so that sampling is fractional and pooling windows differ in size."""

TINY_NANO = EbsegConfig(
    name="tiny-nano",
    clip=ClipConfig(
        image_size=96,
        patch=16,
        width=32,
        heads=2,
        layers=3,
        embedding_dim=16,
        text_width=16,
        text_heads=2,
        text_layers=1,
    ),
    sam=dataclasses.replace(_SAM, patch=8),
    clip_input_scale=1.0,
    plain_blocks=0,
    surgery_blocks=0,
    fusion_layers=(1, 2, 3),
    alpha=0.1,
    beta=0.4,
    gamma=0.6,
    decoder_layers=2,
    decoder_ffn=64,
    pixel_layers=1,
    pixel_ffn=64,
    **_DECODER,
)
"""As nano: SAM's patches of 8, mask attention over all of CLIP's blocks, fusion after the last one; β + γ is 1, so A
is unused for new classes."""

TINY = {config.name: config for config in (TINY_B, TINY_L, TINY_NANO)}


@cache
def tiny_model(name: str) -> EBSeg:
    """The seeded model of that name; shared: copy it before changing a weight."""
    model = seeded_model(TINY[name])
    # The recipe is made for 256 channels; of 32, its constant channel would leave every mask empty.
    model.sem_seg_head.pixel_decoder.mask_features.bias.data[0] = 1.5
    return model
