"""Stage 2: CLIP teaches itself what a region shows, without labels.

As trained, a nano CLIP classifies pictures but not places: pooled patch embeddings are near chance, and a query token
that may look at a part of the picture alone is much worse than CLS on the cut-out part. So a frozen copy looks at
cut-out windows, and the model learns to say the same of each window inside the whole picture, by both ways EBSeg reads
CLIP: the pooled dense map (D) and a masked query token (B). One window is the whole picture, which keeps CLS where it
was. Names are used only as the axes on which the answers are compared; the pictures need no labels.
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
from ..model.ebseg import EBSeg, SizedGraphs
from .contrastive import ContrastiveClip
from .optimizer import adamw
from .scenes import SceneConfig, SceneSource, batch

_OUTSIDE = -100.0  # of a patch a query token may not see, as in the published mask attention


@dataclass(frozen=True, kw_only=True)
class DistillStageConfig:
    """What stage 2 learns and how."""

    steps: int = 600
    batch: int = 8
    windows: int = 6
    """Per picture, the whole picture not counted."""
    window_patches: tuple[int, int] = (3, 8)
    """Shortest and longest side of a window."""
    teacher_side: int = 96
    """Windows are resized to this for the teacher: the size at which it learnt single objects."""
    learning_rate: float = 3e-4
    warmup_steps: int = 50
    weight_decay: float = 0.05
    bf16: bool = True
    seed: int = 0


class DistillStage:
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
        torch.manual_seed(config.seed)
        self.config = config
        self.model = model
        self.source = source
        self.text = text
        side = model.config.clip.image_size
        self.size = Size(height=side, width=side)
        self.teacher = teacher.requires_grad_(False).eval()
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
        rng = np.random.default_rng([config.seed, 2, step])
        first = (1 << 39) + step * config.batch
        pixels, _ = batch(self.source, range(first, first + config.batch), SceneConfig(side=self.size.height))
        images = torch.from_numpy(pixels)
        graphs = self.model.graphs(self.size)
        grid = graphs.clip_image_encoder.grid[0]
        boxes = random_windows(rng, config.batch * config.windows, grid, config.window_patches)
        boxes = boxes.reshape(config.batch, config.windows, 4)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            taught = self._teach(images, boxes)
            inside = window_masks(boxes, grid, round_corners=rng.random() < 0.5)  # (B, 1 + W, h·w)
            b, d = region_embeddings(graphs, images, inside)
        taught, b, d = taught.float(), b.float(), d.float()
        scale = self.model.logit_scale
        answer = (taught @ self.text.T * scale).softmax(-1)
        loss_b = _disagreement(b, taught, answer, self.text, scale)
        loss_d = _disagreement(d, taught, answer, self.text, scale)
        loss = loss_b + loss_d
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], 1.0)
        self.optimizer.step()
        agree = answer.argmax(-1)
        return {
            "loss": float(loss.detach()),
            "loss_b": float(loss_b.detach()),
            "loss_d": float(loss_d.detach()),
            "agreement_b": float(((b @ self.text.T).argmax(-1) == agree).float().mean()),
            "agreement_d": float(((d @ self.text.T).argmax(-1) == agree).float().mean()),
            "learning_rate": rate,
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

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def _disagreement(student: Tensor, taught: Tensor, answer: Tensor, text: Tensor, scale: float) -> Tensor:
    """1 − cosine, plus the divergence of the answers about the names."""
    cosine = 1 - (student * taught).sum(-1).mean()
    told = F.log_softmax(student @ text.T * scale, dim=-1)
    return cosine + F.kl_div(told.flatten(0, -2), answer.flatten(0, -2), reduction="batchmean")


def random_windows(rng: np.random.Generator, count: int, grid: int, sides: tuple[int, int]) -> Tensor:
    """(count, 4) int64: top, left, bottom, right in patches, somewhere on the grid."""
    heights, widths = (rng.integers(sides[0], sides[1] + 1, count) for _ in range(2))
    tops = (rng.random(count) * (grid - heights + 1)).astype(np.int64)
    lefts = (rng.random(count) * (grid - widths + 1)).astype(np.int64)
    return torch.from_numpy(np.stack((tops, lefts, tops + heights, lefts + widths), axis=1))


def window_masks(windows: Tensor, grid: int, *, round_corners: bool) -> Tensor:
    """Which patches a region holds: the whole picture first, then each window, or the ellipse in it.

    Args:
        windows: (B, W, 4) from `random_windows`.
        grid: patches along a side.
        round_corners: objects are rounder than boxes.

    Returns:
        (B, 1 + W, grid²) bool.
    """
    place = torch.arange(grid) + 0.5
    top, left, bottom, right = (windows[..., i, None].float() for i in range(4))
    rows = (place - (top + bottom) / 2) / ((bottom - top) / 2)  # −1..1 inside
    columns = (place - (left + right) / 2) / ((right - left) / 2)
    if round_corners:
        inside = rows[..., :, None] ** 2 + columns[..., None, :] ** 2 <= 1.1
    else:
        inside = (rows[..., :, None].abs() <= 1) & (columns[..., None, :].abs() <= 1)
    whole = torch.ones(len(windows), 1, grid * grid, dtype=torch.bool)
    return torch.cat((whole, inside.flatten(2)), dim=1)


def region_embeddings(graphs: SizedGraphs, images: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """What CLIP says of given regions, by both of EBSeg's ways.

    Args:
        graphs: of a model whose decoder is not used.
        images: (B, 3, H, W) uint8.
        inside: (B, R, h·w) bool, the patches of each region, at least one.

    Returns:
        B by masked query tokens, and D by pooling: (B, R, D) unit length each.
    """
    height, width = images.shape[2:]
    clip = graphs.clip_image_encoder(images, torch.tensor([[height, width]] * len(images), dtype=torch.int32))
    bias = torch.where(inside, 0.0, _OUTSIDE)[:, None]
    b = graphs.adab_decoder.mask_attention(clip.cls, clip.head_keys, clip.head_values, bias)
    share = inside.float() / inside.sum(-1, keepdim=True)
    d = share @ clip.dense.flatten(2).transpose(1, 2)
    return b, F.normalize(d, dim=-1)
