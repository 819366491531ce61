"""The variants of EBSeg as named values. Source: EBSeg (CVPR 2024) and the published configurations."""

from __future__ import annotations

from dataclasses import dataclass

from ..contract import ModelSpec
from ..errors import InputError


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """CLIP's two towers (QuickGELU everywhere)."""

    image_size: int
    """Side of the pre-training pictures; the position embedding's grid is image_size // patch."""
    patch: int
    width: int
    heads: int
    layers: int
    embedding_dim: int
    text_width: int
    text_heads: int
    text_layers: int
    context_length: int = 77
    vocabulary_size: int = 49408


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """SAM's ViT, without its neck."""

    image_size: int = 1024
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    window: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    """0-based blocks with global attention; their four outputs are the features."""


@dataclass(frozen=True, kw_only=True)
class EbsegConfig:
    """One variant: everything that decides a shape or a constant."""

    name: str
    clip: ClipConfig
    sam: SamConfig
    clip_input_scale: float
    """CLIP sees the picture shrunk by this factor."""
    plain_blocks: int
    """CLIP blocks before the surgery stream starts."""
    surgery_blocks: int
    """CLIP blocks with two streams; the blocks after them are the head, where mask attention runs."""
    fusion_layers: tuple[int, int, int]
    """1-based CLIP blocks whose patch tokens are fused into 1/8, 1/16 and 1/32."""
    alpha: float
    beta: float
    gamma: float
    queries: int = 100
    hidden_dim: int = 256
    mask_dim: int = 256
    heads: int = 8
    decoder_layers: int = 9
    decoder_ffn: int = 2048
    pixel_layers: int = 6
    pixel_ffn: int = 1024
    pixel_points: int = 4
    norm_groups: int = 32
    training_classes: int = 171
    default_canvas: int = 640
    """Side of the square canvas that is exported unless another is asked for."""

    def __post_init__(self) -> None:
        if self.plain_blocks + self.surgery_blocks >= self.clip.layers:
            raise ValueError(
                f"{self.name}: plain_blocks {self.plain_blocks} + surgery_blocks {self.surgery_blocks} "
                f"leave no head block of {self.clip.layers}"
            )
        if len(self.sam.global_blocks) != 4:
            raise ValueError(f"{self.name}: sam.global_blocks needs four blocks, got {self.sam.global_blocks}")
        if self.hidden_dim != self.mask_dim:
            raise ValueError(f"{self.name}: mask_dim {self.mask_dim} must equal hidden_dim {self.hidden_dim}")
        if any(not 1 <= layer <= self.clip.layers for layer in self.fusion_layers):
            raise ValueError(f"{self.name}: fusion_layers {self.fusion_layers} outside 1..{self.clip.layers}")

    @property
    def first_head_block(self) -> int:
        """0-based index of the first head block among all CLIP blocks."""
        return self.plain_blocks + self.surgery_blocks

    @property
    def head_blocks(self) -> int:
        return self.clip.layers - self.first_head_block

    def spec(self, *, logit_scale: float) -> ModelSpec:
        """The numbers a host needs. `logit_scale` is learned: exp of the text tower's parameter."""
        return ModelSpec(
            name=self.name,
            queries=self.queries,
            embedding_dim=self.clip.embedding_dim,
            clip_width=self.clip.width,
            clip_heads=self.clip.heads,
            clip_patch=self.clip.patch,
            clip_input_scale=self.clip_input_scale,
            head_blocks=self.head_blocks,
            sam_width=self.sam.width,
            sam_patch=self.sam.patch,
            context_length=self.clip.context_length,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            logit_scale=logit_scale,
        )


EBSEG_B = EbsegConfig(
    name="ebseg-b",
    clip=ClipConfig(
        image_size=224,
        patch=16,
        width=768,
        heads=12,
        layers=12,
        embedding_dim=512,
        text_width=512,
        text_heads=8,
        text_layers=12,
    ),
    sam=SamConfig(),
    clip_input_scale=0.5,
    plain_blocks=2,
    surgery_blocks=7,
    fusion_layers=(3, 6, 9),
    alpha=0.09,
    beta=0.3,
    gamma=0.7,
)

EBSEG_L = EbsegConfig(
    name="ebseg-l",
    clip=ClipConfig(
        image_size=336,
        patch=14,
        width=1024,
        heads=16,
        layers=24,
        embedding_dim=768,
        text_width=768,
        text_heads=12,
        text_layers=12,
    ),
    sam=SamConfig(),
    clip_input_scale=0.7,
    plain_blocks=4,
    surgery_blocks=14,
    fusion_layers=(6, 12, 18),
    alpha=0.12,
    beta=0.4,
    gamma=0.6,
)

EBSEG_NANO = EbsegConfig(
    name="ebseg-nano",
    clip=ClipConfig(
        image_size=256,
        patch=16,
        width=192,
        heads=6,
        layers=6,
        embedding_dim=128,
        text_width=64,
        text_heads=4,
        text_layers=2,
    ),
    sam=SamConfig(image_size=256, patch=8, width=128, depth=4, heads=4, window=8, global_blocks=(0, 1, 2, 3)),
    clip_input_scale=1.0,
    plain_blocks=1,
    surgery_blocks=0,
    fusion_layers=(2, 4, 6),
    alpha=0.0,
    beta=0.4,
    gamma=0.6,
    queries=16,
    hidden_dim=96,
    mask_dim=96,
    decoder_layers=3,
    decoder_ffn=384,
    pixel_layers=2,
    pixel_ffn=384,
    pixel_points=2,
    training_classes=57,
    default_canvas=256,
)
"""Small enough to train on a laptop, for a canvas of 256x256; the same classes, other numbers. CLIP sees the picture at
full size, and mask attention runs over five of its six blocks: with true masks it names 78 % of the regions then, and
67 % (new classes: 55 %) when it runs over the last three."""

VARIANTS: dict[str, EbsegConfig] = {config.name: config for config in (EBSEG_B, EBSEG_L, EBSEG_NANO)}


def config_named(name: str) -> EbsegConfig:
    """The variant of that name. Raises InputError for an unknown one."""
    if name not in VARIANTS:
        raise InputError(f"model {name!r} is not known", cure=f"choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]
