"""Stage 2b: CLIP learns what windows of a scene show, from their captions.

Self-distillation (stage 2) can teach a region no more than the frozen copy knows of its cut-out, and the copy of a nano
CLIP is unsure where several objects meet. Here every window is an image–text pair of its own: a rectangle or an ellipse
thrown anywhere on the picture, and the names of what happens to be inside, weighted as stage 1 weighs a picture's. One
pass over the picture serves all its windows, by both ways EBSeg reads CLIP: the masked query token (B) and the pooled
dense map (D).

New classes take part as in stage 1, as words of a caption: windows fall anywhere, so no outline of anything is told.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Size
from ..model.ebseg import EBSeg
from .clip_stage import STUFF_SHARE
from .distill_stage import random_windows, region_embeddings, window_masks
from .emoji_classes import CLASSES, THINGS
from .optimizer import adamw
from .scenes import SceneConfig, SceneSource, batch


@dataclass(frozen=True, kw_only=True)
class WindowStageConfig:
    """What stage 2b learns and how."""

    steps: int = 3000
    batch: int = 8
    windows: int = 12
    """Per picture, the whole picture not counted."""
    window_patches: tuple[int, int] = (2, 8)
    """Shortest and longest side of a window."""
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    weight_decay: float = 0.05
    bf16: bool = True
    seed: int = 0


class WindowStage:
    """See the module's docstring.

    Args:
        config: what and how.
        model: with stage 2's CLIP.
        source: scenes; of their labels only the captions of windows are used.
        text: (classes, D) unit embeddings of all CLASSES, which stay as they are.
    """

    name = "windows"

    def __init__(self, config: WindowStageConfig, model: EBSeg, source: SceneSource, text: Tensor) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.model = model
        self.source = source
        self.text = text
        side = model.config.clip.image_size
        self.size = Size(height=side, width=side)
        model.requires_grad_(False)
        model.clip_visual_extractor.requires_grad_(True)
        model.clip_rec_head.requires_grad_(True)
        self.optimizer = adamw(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay)

    def config_values(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.config), "window_patches": list(self.config.window_patches)}

    def finished(self, step: int) -> bool:
        return step >= self.config.steps

    def step(self, step: int) -> Mapping[str, float]:
        config = self.config
        rate = config.learning_rate * min(1.0, (step + 1) / config.warmup_steps)
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([config.seed, 3, step])
        first = (1 << 41) + (config.seed << 32) + step * config.batch
        pixels, labels = batch(self.source, range(first, first + config.batch), SceneConfig(side=self.size.height))
        graphs = self.model.graphs(self.size)
        grid = graphs.clip_image_encoder.grid[0]
        boxes = random_windows(rng, config.batch * config.windows, grid, config.window_patches)
        boxes = boxes.reshape(config.batch, config.windows, 4)
        inside = window_masks(boxes, grid, round_corners=rng.random() < 0.5)
        captions = window_captions(torch.from_numpy(labels), inside, grid)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            b, d = region_embeddings(graphs, torch.from_numpy(pixels), inside)
        loss_b, right_b = self._against(b.float(), captions)
        loss_d, right_d = self._against(d.float(), captions)
        loss = loss_b + loss_d
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], 1.0)
        self.optimizer.step()
        return {
            "loss": float(loss.detach()),
            "loss_b": float(loss_b.detach()),
            "loss_d": float(loss_d.detach()),
            "accuracy_b": right_b,
            "accuracy_d": right_d,
            "learning_rate": rate,
        }

    def _against(self, embeddings: Tensor, captions: Tensor) -> tuple[Tensor, float]:
        """Cross-entropy against the captions, and the share of windows whose main word comes first."""
        logits = (embeddings @ self.text.T * self.model.logit_scale).flatten(0, 1)
        wanted = captions.flatten(0, 1)
        right = float((logits.argmax(-1) == wanted.argmax(-1)).float().mean())
        return F.cross_entropy(logits, wanted), right

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


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
