"""What stages 2 and 2b share: a CLIP whose image tower learns what regions show, by both ways EBSeg reads it.

A region is a window, a rectangle or an ellipse thrown anywhere on the picture. One pass over the picture serves all its
windows; the whole picture is the first of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Size
from ..model.clip_image import ClipFeatures
from ..model.ebseg import EBSeg, SizedGraphs
from .optimizer import adamw, cosine_rate
from .scenes import SceneSource

_OUTSIDE = -100.0  # of a patch a query token may not see, as in the published mask attention
_COVERED = 0.4  # share of a patch that a mask must cover to hold it


@dataclass(frozen=True, kw_only=True)
class RegionStageConfig:
    """What such a stage learns and how."""

    steps: int
    batch: int = 8
    windows: int
    """Per picture, the whole picture not counted."""
    window_patches: tuple[int, int]
    """Shortest and longest side of a window."""
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.05
    bf16: bool = True
    seed: int = 0


class RegionStage:
    """CLIP's image tower and its projection train, nothing else does.

    Args:
        config: what and how.
        model: with a trained CLIP.
        source: scenes.
        text: (N, D) unit embeddings of the names that serve as axes; they stay as they are.
    """

    def __init__(self, config: RegionStageConfig, model: EBSeg, source: SceneSource, text: Tensor) -> None:
        torch.manual_seed(config.seed)
        self.model = model
        self.source = source
        self.text = text
        side = model.config.clip.image_size
        self.size = Size(height=side, width=side)
        model.requires_grad_(False)
        model.clip_visual_extractor.requires_grad_(True)
        model.clip_rec_head.requires_grad_(True)
        self.optimizer = adamw(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
        self._settings = config

    def config_values(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self._settings), "window_patches": list(self._settings.window_patches)}

    def finished(self, step: int) -> bool:
        return step >= self._settings.steps

    def draw_windows(self, rng: np.random.Generator, grid: int) -> Tensor:
        """(B, W, 4) windows of a step's pictures, from `random_windows`."""
        config = self._settings
        boxes = random_windows(rng, config.batch * config.windows, grid, config.window_patches)
        return boxes.reshape(config.batch, config.windows, 4)

    def descend(self, step: int, loss_b: Tensor, loss_d: Tensor) -> Mapping[str, float]:
        """One update; returns what every such stage logs."""
        config = self._settings
        rate = cosine_rate(step, base=config.learning_rate, steps=config.steps, warmup=config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = loss_b + loss_d
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], 1.0)
        self.optimizer.step()
        figures = {"loss": loss, "loss_b": loss_b, "loss_d": loss_d}
        return {**{name: float(each.detach()) for name, each in figures.items()}, "learning_rate": rate}

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


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


def covered_patches(masks: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Which patches true masks hold; a mask too thin for any patch keeps its best covered one.

    Args:
        masks: for each picture (K, H, W), 0 or 1; K may differ.
        grid: rows and columns of patches.

    Returns:
        (B, most K, h·w) bool; the rows of masks a picture does not have hold everything.
    """
    most = max(1, *(len(each) for each in masks))
    inside = torch.ones(len(masks), most, grid[0] * grid[1], dtype=torch.bool, device=masks[0].device)
    for i, each in enumerate(masks):
        if len(each):
            cover = F.adaptive_avg_pool2d(each[None], grid)[0].flatten(1)
            inside[i, : len(each)] = (cover >= _COVERED) | (cover == cover.amax(-1, keepdim=True))
    return inside


def query_embeddings(graphs: SizedGraphs, clip: ClipFeatures, inside: Tensor) -> Tensor:
    """B of given regions, by masked query tokens: (B, R, h·w) bool -> (B, R, D) unit length."""
    bias = torch.where(inside, 0.0, _OUTSIDE)[:, None]
    b: Tensor = graphs.adab_decoder.mask_attention(clip.cls, clip.head_keys, clip.head_values, bias)
    return b


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
    b = query_embeddings(graphs, clip, inside)
    share = inside.float() / inside.sum(-1, keepdim=True)
    d = share @ clip.dense.flatten(2).transpose(1, 2)
    return b, F.normalize(d, dim=-1)
