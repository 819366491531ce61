"""Stage 2: CLIP teaches itself what a region shows, without labels.

As trained, a nano CLIP classifies pictures but not places: pooled patch embeddings are near chance, and a query token
that may look at a part of the picture alone is much worse than CLS on the cut-out part. So a frozen copy looks at
cut-out windows, and the model learns to say the same of each window inside the whole picture, by both ways EBSeg reads
CLIP: the pooled dense map (D) and a masked query token (B). One window is the whole picture, which keeps CLS where it
was. Names are used only as the axes on which the answers are compared; the pictures need no labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.ebseg import EBSeg
from .contrastive import ContrastiveClip
from .region_stage import RegionStage, RegionStageConfig, region_embeddings, window_masks
from .scenes import SceneConfig, SceneSource, batch


@dataclass(frozen=True, kw_only=True)
class DistillStageConfig(RegionStageConfig):
    """What stage 2 learns and how."""

    steps: int = 600
    windows: int = 6
    window_patches: tuple[int, int] = (3, 8)
    teacher_side: int = 96
    """Windows are resized to this for the teacher: the size at which it learnt single objects."""
    learning_rate: float = 3e-4
    warmup_steps: int = 50


class DistillStage(RegionStage):
    """See the module's docstring.

    Args:
        config: what and how.
        model: with stage 1's CLIP installed.
        teacher: the same CLIP, folded.
        source: scenes; their labels are not looked at.
        text: (N, D) unit embeddings of the names that serve as axes.
    """

    name = "distill"

    def __init__(
        self,
        config: DistillStageConfig,
        model: EBSeg,
        teacher: ContrastiveClip,
        source: SceneSource,
        text: Tensor,
    ) -> None:
        super().__init__(config, model, source, text)
        self.config = config
        self.teacher = teacher.requires_grad_(False).eval()

    def step(self, step: int) -> Mapping[str, float]:
        config = self.config
        rng = np.random.default_rng([config.seed, 2, step])
        first = (1 << 39) + step * config.batch
        pixels, _ = batch(self.source, range(first, first + config.batch), SceneConfig(side=self.size.height))
        images = torch.from_numpy(pixels)
        graphs = self.model.graphs(self.size)
        grid = graphs.clip_image_encoder.grid[0]
        boxes = self.draw_windows(rng, grid)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            taught = self._teach(images, boxes)
            inside = window_masks(boxes, grid, round_corners=rng.random() < 0.5)  # (B, 1 + W, h·w)
            b, d = region_embeddings(graphs, images, inside)
        taught, b, d = taught.float(), b.float(), d.float()
        scale = self.model.logit_scale
        answer = (taught @ self.text.T * scale).softmax(-1)
        loss_b = _disagreement(b, taught, answer, self.text, scale)
        loss_d = _disagreement(d, taught, answer, self.text, scale)
        agree = answer.argmax(-1)
        return {
            **self.descend(step, loss_b, loss_d),
            "agreement_b": float(((b @ self.text.T).argmax(-1) == agree).float().mean()),
            "agreement_d": float(((d @ self.text.T).argmax(-1) == agree).float().mean()),
        }

    @torch.no_grad()
    def _teach(self, images: Tensor, boxes: Tensor) -> Tensor:
        """CLS of the whole pictures and of the cut-out windows: (B, 1 + W, D)."""
        side, patch = self.config.teacher_side, self.model.config.clip.patch
        cuts = [
            F.interpolate(
                image[None, :, top * patch : bottom * patch, left * patch : right * patch].float(),
                size=(side, side), mode="bilinear", antialias=True, align_corners=False,
            )
            for image, windows in zip(images, boxes.tolist(), strict=True)
            for top, left, bottom, right in windows
        ]  # fmt: skip
        whole = self._teacher_cls(images)
        windows = self._teacher_cls(torch.cat(cuts).round().to(torch.uint8))
        return torch.cat((whole[:, None], windows.reshape(len(images), -1, whole.shape[1])), dim=1)

    def _teacher_cls(self, images: Tensor) -> Tensor:
        """A picture smaller than the position grid takes the middle of it, as stage 1 took any part of it."""
        start = (self.teacher.grid - images.shape[2] // self.model.config.clip.patch) // 2
        return self.teacher.embed_plain(images, (start, start))


def _disagreement(student: Tensor, taught: Tensor, answer: Tensor, text: Tensor, scale: float) -> Tensor:
    """1 − cosine, plus the divergence of the answers about the names."""
    cosine = 1 - (student * taught).sum(-1).mean()
    told = F.log_softmax(student @ text.T * scale, dim=-1)
    return cosine + F.kl_div(told.flatten(0, -2), answer.flatten(0, -2), reduction="batchmean")
