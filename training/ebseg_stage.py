"""Stage 3: EBSeg's own training, on classes with masks. CLIP is frozen; the decoder learns, and SAM where it is small.

Every prediction of the decoder is supervised, its own matching each. Source: EBSeg (CVPR 2024).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Size
from ..model.clip_image import ClipFeatures
from ..model.config import EbsegConfig
from ..model.ebseg import EBSeg, SizedGraphs
from ..model.pixel_decoder import PixelFeatures
from .losses import LossConfig, Supervised, ebseg_losses, weighted
from .matching import Targets
from .optimizer import adamw, poly_rate
from .region_stage import covered_patches, query_embeddings
from .samples import Samples

NANO_LEARNING_RATE = 7e-4


@dataclass(frozen=True, kw_only=True)
class EbsegStageConfig:
    """What stage 3 learns and how. The defaults are the published recipe for B; `nano_stage` gives nano's."""

    model: EbsegConfig
    size: int = 640
    """Side of the square training crop."""
    steps: int = 120_000
    batch: int = 16
    learning_rate: float = 1e-4
    """8e-5 for L."""
    warmup_steps: int = 0
    weight_decay: float = 0.05
    gradient_clip: float = 0.01
    train_sam: bool = False
    """All of SAM, or its position embedding alone? Nano's has no pre-training, so it trains."""
    train_clip_positions: bool = True
    bf16: bool = False
    bf16_pixel_decoder: bool = False
    """The published training keeps it in FP32; for nano bfloat16 makes a step a fifth shorter."""
    loss: LossConfig = field(default_factory=LossConfig)
    unnamed: float = 0.0
    """Share of the scenes' objects whose masks alone are taught; of emoji scenes."""
    seed: int = 0


def nano_stage(
    model: EbsegConfig,
    *,
    steps: int,
    seed: int = 0,
    structure: float = 10.0,
    region: float = 0.0,
    unnamed: float = 0.0,
    learning_rate: float = NANO_LEARNING_RATE,
) -> EbsegStageConfig:
    """Nano's recipe: small batches of small pictures, a higher rate, fewer points (a mask has 4,096 pixels, not
    25,600), and CLIP's positions left alone, because they were learnt at this very size."""
    return EbsegStageConfig(
        model=model,
        size=256,
        steps=steps,
        batch=4,
        learning_rate=learning_rate,
        warmup_steps=100,
        train_sam=True,
        train_clip_positions=False,
        bf16=True,
        bf16_pixel_decoder=True,
        loss=LossConfig(points=2048, structure=structure, region=region),
        unnamed=unnamed,
        seed=seed,
    )


class EbsegStage:
    """See the module's docstring.

    Args:
        config: what and how.
        model: with CLIP's weights in place, and SAM's unless it trains; the rest initialised.
        samples: the training set.
        text: (N, D) unit text embeddings of `samples.names`.
        device: where to compute, "cpu" or "cuda".
    """

    name = "ebseg"

    def __init__(
        self, config: EbsegStageConfig, model: EBSeg, samples: Samples, text: Tensor, *, device: str = "cpu"
    ) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.samples = samples
        self.text = text.to(self.device)
        self._freeze()
        self.optimizer = adamw(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay)

    def _freeze(self) -> None:
        model, config = self.model, self.config
        model.requires_grad_(False)
        model.sem_seg_head.requires_grad_(True)
        model.ov_classifier.bg_embed.requires_grad_(True)
        model.backbone.requires_grad_(config.train_sam)
        model.backbone.pos_embed.requires_grad_(True)
        model.clip_visual_extractor.positional_embedding.requires_grad_(config.train_clip_positions)

    def config_values(self) -> dict[str, Any]:
        """Without what training does not depend on: the balance is tuned afterwards."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self.config))
        for name in ("alpha", "beta", "gamma", "default_canvas"):
            del values["model"][name]
        return values

    def finished(self, step: int) -> bool:
        return step >= self.config.steps

    def step(self, step: int) -> Mapping[str, float]:
        config = self.config
        rate = poly_rate(step, base=config.learning_rate, steps=config.steps, warmup=config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images, valid_size, targets = self.samples.batch(step, config.batch)
        images, valid_size = images.to(self.device), valid_size.to(self.device)
        targets = [
            Targets(classes=target.classes.to(self.device), masks=target.masks.to(self.device)) for target in targets
        ]
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        with self.device:
            graphs = self.model.graphs(Size(height=config.size, width=config.size))  # positions follow the weights
        bf16 = torch.autocast(images.device.type, torch.bfloat16, enabled=config.bf16)
        with bf16, torch.set_grad_enabled(config.train_clip_positions):
            clip = graphs.clip_image_encoder(images, valid_size)
        regions = None
        if config.loss.region:
            inside = covered_patches([target.masks for target in targets], graphs.clip_image_encoder.grid)
            with bf16, torch.no_grad():
                regions = list(query_embeddings(graphs, clip, inside).float())
        predictions = supervised_predictions(
            self.model, graphs, clip, images, valid_size, self.text,
            bf16=config.bf16, bf16_pixel_decoder=config.bf16_pixel_decoder,
        )  # fmt: skip
        losses = ebseg_losses(predictions, targets, self.text, config.loss, regions=regions, generator=generator)
        total = weighted(losses, config.loss)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        trained = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(trained, config.gradient_clip)
        self.optimizer.step()
        count = len(predictions)
        return {
            "loss": float(total.detach()),
            **{name: float(loss.detach()) / (1 if name == "structure" else count) for name, loss in losses.items()},
            "gradient_norm": float(norm),
            "learning_rate": rate,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def supervised_predictions(
    model: EBSeg,
    graphs: SizedGraphs,
    clip: ClipFeatures,
    images: Tensor,
    valid_size: Tensor,
    text: Tensor,
    *,
    bf16: bool = False,
    bf16_pixel_decoder: bool = False,
) -> list[Supervised]:
    """Every prediction of the decoder, with A's and B's logits.

    The mask attention of all predictions runs once, their queries side by side: a query token sees itself and the
    patches alone, so it cannot tell.

    Args:
        model: its graphs share its weights.
        graphs: built since the last update.
        clip: what its CLIP encoder gave for the pictures; with gradients if that trains.
        images: (B, 3, H, W) uint8. valid_size: (B, 2) int32.
        text: (N, D) unit rows.
        bf16: autocast everything but the pixel decoder, which is FP32 in the published training too.
        bf16_pixel_decoder: autocast that as well; what leaves it is FP32.
    """
    decoder = graphs.adab_decoder
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        sam = graphs.sam_image_encoder(images, valid_size)
    fusion = tuple(feature.float() for feature in clip.fusion)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16_pixel_decoder):
        features = decoder.pixel_decoder(fusion, tuple(feature.float() for feature in sam))
    features = PixelFeatures(
        levels=[level.float() for level in features.levels], mask_features=features.mask_features.float()
    )
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        states = decoder.masked_decoder.queries(features)
        predictions = [decoder.masked_decoder.predict(state, features.mask_features) for state in states]
        embeddings = torch.cat([prediction.mask_embeddings for prediction in predictions], dim=1)
        bias = decoder.masked_decoder.mask_attention_bias(embeddings, features.mask_features)
        b = decoder.mask_attention(clip.cls, clip.head_keys, clip.head_values, bias)
    background = F.normalize(model.ov_classifier.bg_embed, dim=-1)
    weights = torch.cat((text, background)).T * model.logit_scale
    each_b = b.float().chunk(len(predictions), dim=1)
    return [
        Supervised(
            mask_logits=prediction.mask_logits.float(),
            embeddings_a=prediction.embeddings_a.float(),
            logits_a=prediction.embeddings_a.float() @ weights,
            logits_b=part @ weights,
            embeddings_b=part,
        )
        for prediction, part in zip(predictions, each_b, strict=True)
    ]


def _plain(value: Any) -> Any:
    """Tuples to lists, so that what is saved compares equal to what is read."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
