"""How well CLIP names regions whose masks are given: what classification could reach if masks were perfect."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Size
from ..model.ebseg import EBSeg
from .distill_stage import region_embeddings
from .emoji_classes import CLASSES, THINGS
from .samples import masks_of
from .scenes import SceneConfig, SceneSource, batch

_COVERED = 0.4  # share of a patch that a mask must cover to hold it


@dataclass(frozen=True, kw_only=True)
class RegionAccuracy:
    """Share of true regions of things that are named rightly, among all classes."""

    b_seen: float
    b_new: float
    d_seen: float
    d_new: float


@torch.no_grad()
def region_accuracy(model: EBSeg, source: SceneSource, text: Tensor, *, scenes: int = 64) -> RegionAccuracy:
    """Classify the true masks of scenes by B and by D.

    Args:
        model: its CLIP is used, its decoder is not.
        source: scenes with truth.
        text: (classes, D) unit embeddings of all CLASSES.
        scenes: how many.
    """
    side = model.config.clip.image_size
    graphs = model.graphs(Size(height=side, width=side))
    hits: dict[str, list[float]] = {name: [] for name in ("b_seen", "b_new", "d_seen", "d_new")}
    for first in range(0, scenes, 8):
        images, labels = batch(source, range(first, first + 8), SceneConfig(side=side))
        targets = [masks_of(torch.from_numpy(each), len(CLASSES)) for each in labels]
        most = max(len(target.classes) for target in targets)
        inside = torch.ones(len(targets), most, graphs.clip_image_encoder.grid[0] ** 2, dtype=torch.bool)
        for i, target in enumerate(targets):
            inside[i, : len(target.classes)] = _patches(target.masks, graphs.clip_image_encoder.grid)
        b, d = region_embeddings(graphs, torch.from_numpy(images), inside)
        for i, target in enumerate(targets):
            for way, embeddings in (("b", b), ("d", d)):
                said = (embeddings[i, : len(target.classes)] @ text.T).argmax(-1)
                for wanted, got in zip(target.classes.tolist(), said.tolist(), strict=True):
                    if wanted < len(THINGS):
                        hits[f"{way}_{'seen' if CLASSES[wanted].seen else 'new'}"].append(float(wanted == got))
    return RegionAccuracy(**{name: sum(each) / max(1, len(each)) for name, each in hits.items()})


def _patches(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """(K, H, W) -> (K, h·w) bool; a mask too thin for any patch keeps its best covered one."""
    cover = F.adaptive_avg_pool2d(masks[None], grid)[0].flatten(1)
    return (cover >= _COVERED) | (cover == cover.amax(-1, keepdim=True))
