"""Stage 2b: CLIP learns what windows of a scene show, from their captions.

Self-distillation (stage 2) can teach a region no more than the frozen copy knows of its cut-out, and the copy of a nano
CLIP is unsure where several objects meet. Here every window is an image–text pair of its own: a rectangle or an ellipse
thrown anywhere on the picture, and the names of what happens to be inside, weighted as stage 1 weighs a picture's. One
pass over the picture serves all its windows, by both ways EBSeg reads CLIP: the masked query token (B) and the pooled
dense map (D).

New classes take part as in stage 1, as words of a caption: windows fall anywhere, so no outline of anything is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.ebseg import EBSeg
from .clip_stage import STUFF_SHARE
from .emoji_classes import CLASSES, THINGS
from .region_stage import RegionStage, RegionStageConfig, region_embeddings, window_masks
from .scenes import SceneConfig, SceneSource, batch


@dataclass(frozen=True, kw_only=True)
class WindowStageConfig(RegionStageConfig):
    """What stage 2b learns and how."""

    steps: int = 3000
    windows: int = 12
    window_patches: tuple[int, int] = (2, 8)
    learning_rate: float = 5e-4
    warmup_steps: int = 100


class WindowStage(RegionStage):
    """See the module's docstring.

    Args:
        config: what and how.
        model: with stage 2's CLIP.
        source: scenes; of their labels only the captions of windows are used.
        text: (classes, D) unit embeddings of all CLASSES, which stay as they are.
    """

    name = "windows"

    def __init__(self, config: WindowStageConfig, model: EBSeg, source: SceneSource, text: Tensor) -> None:
        super().__init__(config, model, source, text)
        self.config = config

    def step(self, step: int) -> Mapping[str, float]:
        config = self.config
        rng = np.random.default_rng([config.seed, 3, step])
        first = (1 << 41) + (config.seed << 32) + step * config.batch
        pixels, labels = batch(self.source, range(first, first + config.batch), SceneConfig(side=self.size.height))
        graphs = self.model.graphs(self.size)
        grid = graphs.clip_image_encoder.grid[0]
        boxes = self.draw_windows(rng, grid)
        inside = window_masks(boxes, grid, round_corners=rng.random() < 0.5)
        captions = window_captions(torch.from_numpy(labels), inside, grid)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            b, d = region_embeddings(graphs, torch.from_numpy(pixels), inside)
        loss_b, right_b = self._against(b.float(), captions)
        loss_d, right_d = self._against(d.float(), captions)
        return {**self.descend(step, loss_b, loss_d), "accuracy_b": right_b, "accuracy_d": right_d}

    def _against(self, embeddings: Tensor, captions: Tensor) -> tuple[Tensor, float]:
        """Cross-entropy against the captions, and the share of windows whose main word comes first."""
        logits = (embeddings @ self.text.T * self.model.logit_scale).flatten(0, 1)
        wanted = captions.flatten(0, 1)
        right = float((logits.argmax(-1) == wanted.argmax(-1)).float().mean())
        return F.cross_entropy(logits, wanted), right


def window_captions(labels: Tensor, inside: Tensor, grid: int) -> Tensor:
    """What windows show, as distributions over classes: shares proportional to √area, stuff counting less.

    Args:
        labels: (B, H, W) indices into CLASSES.
        inside: (B, R, grid²) bool, the patches of each window.
        grid: patches along a side; a patch is H / grid pixels high.

    Returns:
        (B, R, classes), rows summing to 1.
    """
    pictures, height, width = labels.shape
    patch_rows, patch_columns = height // grid, width // grid
    patches = labels.reshape(pictures, grid, patch_rows, grid, patch_columns).transpose(2, 3).flatten(3).flatten(1, 2)
    counts = torch.zeros(pictures, grid * grid, len(CLASSES))
    counts.scatter_add_(2, patches.long(), torch.ones_like(patches, dtype=torch.float32))
    weight = (inside.float() @ counts).sqrt()
    weight[..., len(THINGS) :] *= STUFF_SHARE
    return weight / weight.sum(-1, keepdim=True)
