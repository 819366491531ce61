"""EBSeg assembled: one tree of weights under the published names, and the five graphs that share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..contract import ModelSpec, Size
from ..errors import InputError
from .adab_decoder import AdabDecoder, AdabOutput, OpenVocabHead
from .clip_image import ClipHead, ClipImageEncoder, ClipTrunk
from .config import EbsegConfig
from .masked_decoder import MaskedDecoder, PredictorWeights
from .pixel_decoder import PixelDecoder, PixelDecoderWeights, fusion_layers
from .sam_image import SamBackbone, SamImageEncoder
from .text import TextEncoder, TextTower

if TYPE_CHECKING:
    from open_clip import CLIP


class SegmentationHead(nn.Module):
    """Published name `sem_seg_head`."""

    def __init__(self, config: EbsegConfig) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoderWeights(config)
        self.predictor = PredictorWeights(config)
        self.clip_fusion_layers = fusion_layers(config)


class Criterion(nn.Module):
    """Published name `criterion`: class weights of the training loss, 0.1 for the background."""

    empty_weight: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        weight = torch.ones(classes + 1)
        weight[-1] = 0.1
        self.register_buffer("empty_weight", weight)


@dataclass(frozen=True)
class SizedGraphs:
    """The three graphs that depend on the canvas size."""

    size: Size
    clip_image_encoder: ClipImageEncoder
    sam_image_encoder: SamImageEncoder
    adab_decoder: AdabDecoder


class EBSeg(nn.Module):
    """All weights of one variant; `state_dict()` has the published checkpoint's canonical keys."""

    def __init__(self, config: EbsegConfig) -> None:
        super().__init__()
        self.config = config
        clip = _clip_towers(config)
        self.criterion = Criterion(config.training_classes)
        self.clip_visual_extractor = ClipTrunk(clip.visual, config)
        self.clip_rec_head = ClipHead(clip.visual, config)
        self.ov_classifier = TextTower(clip, config)
        self.backbone = SamBackbone(config.sam)
        self.sem_seg_head = SegmentationHead(config)

    @property
    def logit_scale(self) -> float:
        """Factor from cosine to logit."""
        return float(self.ov_classifier.logit_scale.detach().exp())

    @property
    def spec(self) -> ModelSpec:
        return self.config.spec(logit_scale=self.logit_scale)

    def graphs(self, size: Size) -> SizedGraphs:
        """The image encoders and the decoder for one canvas. They share this model's weights; what follows from weights
        and size (resized positions, relative-position tables) is computed here, so build anew after an update."""
        if size.height % 32 or size.width % 32 or min(size.height, size.width) < 32:
            raise InputError(f"size {size}: sides must be positive multiples of 32", cure="for example 640x640")
        config, head = self.config, self.sem_seg_head
        clip_encoder = ClipImageEncoder(self.clip_visual_extractor, self.clip_rec_head, config, size)
        pixel_decoder = PixelDecoder(head.pixel_decoder, head.clip_fusion_layers, config, size)
        masked_decoder = MaskedDecoder(head.predictor, config, size, clip_encoder.grid)
        return SizedGraphs(
            size=size,
            clip_image_encoder=clip_encoder,
            sam_image_encoder=SamImageEncoder(self.backbone, config.sam, size),
            adab_decoder=AdabDecoder(pixel_decoder, masked_decoder, self.clip_rec_head),
        )

    def open_vocab_head(self) -> OpenVocabHead:
        config = self.config
        return OpenVocabHead(alpha=config.alpha, beta=config.beta, gamma=config.gamma, logit_scale=self.logit_scale)

    def text_encoder(self) -> TextEncoder:
        return TextEncoder(self.ov_classifier)

    @torch.no_grad()
    def segment(
        self, graphs: SizedGraphs, image: Tensor, valid_size: Tensor, text_embeddings: Tensor, seen: Tensor
    ) -> tuple[AdabOutput, Tensor]:
        """One run of everything but the label map.

        Args:
            graphs: from `graphs(size)`.
            image: (B, 3, H, W) uint8 RGB. valid_size: (B, 2) int32.
            text_embeddings: (N + 1, D), background last. seen: (N,) float32.

        Returns:
            The decoder's output, and class probabilities (B, Q, N).
        """
        output = graphs.adab_decoder(
            graphs.clip_image_encoder(image, valid_size), graphs.sam_image_encoder(image, valid_size)
        )
        head = self.open_vocab_head()
        probabilities = head(output.embeddings_a, output.embeddings_b, output.embeddings_d, text_embeddings, seen)
        return output, probabilities


def _clip_towers(config: EbsegConfig) -> CLIP:
    """open_clip's own model, with random weights, of the variant's widths."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    clip = config.clip
    vision = CLIPVisionCfg(
        layers=clip.layers,
        width=clip.width,
        head_width=clip.width // clip.heads,
        patch_size=clip.patch,
        image_size=clip.image_size,
    )
    text = CLIPTextCfg(
        context_length=clip.context_length,
        vocab_size=clip.vocabulary_size,
        width=clip.text_width,
        heads=clip.text_heads,
        layers=clip.text_layers,
    )
    return CLIP(clip.embedding_dim, vision, text, quick_gelu=True)
