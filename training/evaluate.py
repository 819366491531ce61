"""Accuracy of a model in torch, for choosing what training cannot: the balance, and whether a part helps.

The figures that count come from the deployed bundle (`ebseg bench accuracy`); these differ from them by rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Size
from ..model.adab_decoder import OpenVocabHead
from ..model.ebseg import EBSeg
from .confusion import Confusion, OpenVocabularyFigures, figures
from .emoji_classes import CLASSES
from .scenes import SceneConfig, SceneSource, batch

SEEN = np.array([each.seen for each in CLASSES])
BACKGROUND = np.array([each.emoji is None for each in CLASSES])


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Exponents of the three probabilities: A^(1−α−γ) D^α B^γ for seen classes, β in α's place for new ones."""

    alpha: float
    beta: float
    gamma: float


ABLATIONS: dict[str, Balance] = {
    "A only": Balance(alpha=0, beta=0, gamma=0),
    "B only": Balance(alpha=0, beta=0, gamma=1),
    "D only": Balance(alpha=1, beta=1, gamma=0),
    "A + B": Balance(alpha=0, beta=0, gamma=0.5),
}


class Observed(NamedTuple):
    """What a model gave for some scenes, before balancing."""

    mask_logits: Tensor
    """(S, Q, h, w)."""
    embeddings: tuple[Tensor, Tensor, Tensor]
    """A, B, D: (S, Q, D) each."""
    labels: Tensor
    """(S, H, W) uint8."""


@torch.no_grad()
def observe(model: EBSeg, source: SceneSource, *, scenes: int, size: int = 256, at_once: int = 8) -> Observed:
    """Run everything but the balance on the first scenes of a split."""
    graphs = model.graphs(Size(height=size, width=size))
    parts = []
    for first in range(0, scenes, at_once):
        images, labels = batch(source, range(first, min(scenes, first + at_once)), SceneConfig(side=size))
        valid = torch.tensor([[size, size]] * len(images), dtype=torch.int32)
        pixels = torch.from_numpy(images)
        output = graphs.adab_decoder(graphs.clip_image_encoder(pixels, valid), graphs.sam_image_encoder(pixels, valid))
        parts.append((output, torch.from_numpy(labels)))
    return Observed(
        mask_logits=torch.cat([output.mask_logits for output, _ in parts]),
        embeddings=(
            torch.cat([output.embeddings_a for output, _ in parts]),
            torch.cat([output.embeddings_b for output, _ in parts]),
            torch.cat([output.embeddings_d for output, _ in parts]),
        ),
        labels=torch.cat([labels for _, labels in parts]),
    )


@torch.no_grad()
def judge(
    observed: Observed, model: EBSeg, text: Tensor, balance: Balance, *, reduce: int = 1
) -> OpenVocabularyFigures:
    """Figures of a balance.

    Args:
        observed: of some scenes.
        model: gives background embedding and logit scale.
        text: (classes, D) unit embeddings of all CLASSES.
        balance: the exponents.
        reduce: look at every n-th pixel of the label maps (4: the masks' own resolution), for searching.
    """
    head = OpenVocabHead(alpha=balance.alpha, beta=balance.beta, gamma=balance.gamma, logit_scale=model.logit_scale)
    with_background = torch.cat((text, F.normalize(model.ov_classifier.bg_embed, dim=-1)))
    seen = torch.from_numpy(SEEN).float()
    probabilities = head(*observed.embeddings, with_background, seen)
    confusion = Confusion(len(CLASSES))
    size = (observed.labels.shape[1] // reduce, observed.labels.shape[2] // reduce)
    for logits, classes, labels in zip(observed.mask_logits, probabilities, observed.labels, strict=True):
        masks = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].sigmoid()
        given = torch.einsum("qn,qhw->nhw", classes, masks).argmax(0)
        confusion.add(labels[reduce // 2 :: reduce, reduce // 2 :: reduce].numpy(), given.numpy())
    return figures(confusion, SEEN, BACKGROUND)


def search_balance(
    observed: Observed, model: EBSeg, text: Tensor, candidates: Iterable[Balance] | None = None
) -> tuple[Balance, list[tuple[Balance, OpenVocabularyFigures]]]:
    """The balance of the highest harmonic mIoU, and all that were tried. Only a validation split may be given."""
    tried = [(each, judge(observed, model, text, each, reduce=4)) for each in candidates or balance_grid()]
    return max(tried, key=lambda pair: pair[1].harmonic_miou)[0], tried


def balance_grid(
    gammas: Sequence[float] = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    shares: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 1.0),
) -> list[Balance]:
    """γ, and α and β as shares of what γ leaves; β is at least α, as in the paper."""
    return [
        Balance(alpha=round(a * (1 - gamma), 4), beta=round(b * (1 - gamma), 4), gamma=gamma)
        for gamma in gammas
        for a in shares
        for b in shares
        if b >= a
    ]
