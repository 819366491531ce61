"""The two halves of the task apart: naming regions whose masks are given, and finding masks whose names are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Size
from ..model.adab_decoder import OpenVocabHead
from ..model.ebseg import EBSeg
from .confusion import Confusion, OpenVocabularyFigures, figures
from .emoji_classes import CLASSES, THINGS
from .evaluate import BACKGROUND, SEEN, Observed
from .region_stage import covered_patches, region_embeddings
from .samples import masks_of
from .scenes import SceneConfig, SceneSource, batch

_FITS = 0.2  # IoU below which a mask is nobody's


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
        inside = covered_patches([target.masks for target in targets], graphs.clip_image_encoder.grid)
        b, d = region_embeddings(graphs, torch.from_numpy(images), inside)
        for i, target in enumerate(targets):
            for way, embeddings in (("b", b), ("d", d)):
                said = (embeddings[i, : len(target.classes)] @ text.T).argmax(-1)
                for wanted, got in zip(target.classes.tolist(), said.tolist(), strict=True):
                    if wanted < len(THINGS):
                        hits[f"{way}_{'seen' if CLASSES[wanted].seen else 'new'}"].append(float(wanted == got))
    return RegionAccuracy(**{name: sum(each) / max(1, len(each)) for name, each in hits.items()})


@dataclass(frozen=True, kw_only=True)
class MaskQuality:
    """How well a decoder's masks fit, whatever it names them. All 0 to 1."""

    best_iou_seen: float
    """Mean over the things of all scenes of the best IoU that any of the decoder's masks has with it."""
    best_iou_new: float
    named_rightly: OpenVocabularyFigures
    """Figures when every mask gets the name of the class it fits best."""


class SeenAndNew(NamedTuple):
    """Shares of the seen and of the new things, 0 to 1."""

    seen: float
    new: float


@torch.no_grad()
def mask_naming(observed: Observed, model: EBSeg, text: Tensor) -> dict[str, SeenAndNew]:
    """Each thing's best mask: is it named rightly, among all classes, by A, B, D and by their balance?

    What "B" loses here against `region_accuracy` is lost between the mask and mask attention.

    Args:
        observed: of scenes with truth.
        model: that was observed; its own balance counts.
        text: (classes, D) unit embeddings of all CLASSES.
    """
    config = model.config
    head = OpenVocabHead(alpha=config.alpha, beta=config.beta, gamma=config.gamma, logit_scale=model.logit_scale)
    with_background = torch.cat((text, F.normalize(model.ov_classifier.bg_embed, dim=-1)))
    balanced = head(*observed.embeddings, with_background, torch.from_numpy(SEEN).float())
    said = {way: (each @ text.T).argmax(-1) for way, each in zip("ABD", observed.embeddings, strict=True)}
    said["balanced"] = balanced.argmax(-1)
    hits: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in said}
    for i, (logits, labels) in enumerate(zip(observed.mask_logits, observed.labels, strict=True)):
        _, iou = _fits(logits, labels)
        for cls in labels.unique().tolist():
            if cls < len(THINGS):
                query = int(iou[:, cls].argmax())
                for way, names in said.items():
                    hits[way][0 if CLASSES[cls].seen else 1].append(float(names[i, query] == cls))
    return {way: SeenAndNew(*(sum(each) / max(1, len(each)) for each in both)) for way, both in hits.items()}


@torch.no_grad()
def mask_quality(observed: Observed) -> MaskQuality:
    """Judge masks alone.

    Args:
        observed: of scenes with truth; a mask holds the pixels where its logit is positive.
    """
    confusion = Confusion(len(CLASSES))
    best: dict[bool, list[float]] = {True: [], False: []}
    for logits, labels in zip(observed.mask_logits, observed.labels, strict=True):
        masks, iou = _fits(logits, labels)
        for cls in labels.unique().tolist():
            if cls < len(THINGS):
                best[CLASSES[cls].seen].append(float(iou[:, cls].max()))
        fit, name = iou.max(1)
        share = torch.zeros_like(iou).scatter_(1, name[:, None], (fit > _FITS).float()[:, None])
        given = torch.einsum("qn,qhw->nhw", share, masks).argmax(0)
        confusion.add(labels.numpy(), given.numpy())
    return MaskQuality(
        best_iou_seen=sum(best[True]) / max(1, len(best[True])),
        best_iou_new=sum(best[False]) / max(1, len(best[False])),
        named_rightly=figures(confusion, SEEN, BACKGROUND),
    )


def _fits(mask_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, h, w) and (H, W) labels -> (Q, H, W) masks, 0 to 1, and (Q, classes) IoU of each with each class."""
    masks = F.interpolate(mask_logits[None], size=labels.shape, mode="bilinear", align_corners=False)[0].sigmoid()
    inside = (masks > 0.5).float().flatten(1)
    truth = F.one_hot(labels.long().flatten(), len(CLASSES)).float()
    both = inside @ truth
    return masks, both / (inside.sum(1)[:, None] + truth.sum(0)[None] - both).clamp(min=1)
