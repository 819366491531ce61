"""EBSeg's training losses: classification of A and B, masks, and semantic structure consistency.

Source: EBSeg (CVPR 2024); the mask losses are Mask2Former's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .matching import NO_NAME, MatchCosts, Targets, match
from .points import sample_points, uncertain_points


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and sampling of the published training."""

    classification: float = 2 * 0.75
    """Of A's cross-entropy, and as much of B's."""
    background: float = 0.1
    """Class weight of queries that answer for no mask."""
    mask: float = 5.0
    dice: float = 5.0
    structure: float = 10.0
    """Of SSC; 0 trains without it."""
    region: float = 0.0
    """Of B's likeness to what CLIP says of the true mask; not in the published training."""
    points: int = 112 * 112
    oversample: float = 3.0
    importance: float = 0.75
    costs: MatchCosts = field(default_factory=MatchCosts)


class Supervised(NamedTuple):
    """What is supervised of one prediction of the decoder."""

    mask_logits: Tensor
    """(B, Q, h, w)."""
    embeddings_a: Tensor
    """(B, Q, D)."""
    logits_a: Tensor
    """(B, Q, N + 1), background last."""
    logits_b: Tensor
    """(B, Q, N + 1)."""
    embeddings_b: Tensor
    """(B, Q, D), unit length."""


def mask_bce(logits: Tensor, truth: Tensor, masks: float) -> Tensor:
    """Binary cross-entropy, mean over points, sum over masks, divided by `masks`: (K, P), (K, P) -> scalar."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1).sum() / masks


def dice_loss(logits: Tensor, truth: Tensor, masks: float) -> Tensor:
    """1 − (2 Σ p·t + 1) / (Σ p + Σ t + 1), sum over masks, divided by `masks`: (K, P), (K, P) -> scalar."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * truth).sum(1)
    total = probability.sum(1) + truth.sum(1)
    return (1 - (overlap + 1) / (total + 1)).sum() / masks


def class_loss(logits: Tensor, wanted: Tensor, background: float) -> Tensor:
    """Cross-entropy with the background class (the last) weighted: (B, Q, N + 1), (B, Q) -> scalar.

    A query whose wanted class is NO_NAME is left out.
    """
    weight = torch.ones(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    weight[-1] = background
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight, ignore_index=NO_NAME)


def structure_consistency(embeddings: Sequence[Tensor], text: Sequence[Tensor]) -> Tensor:
    """SSC: the matched embeddings should relate to one another as their classes' text embeddings do.

    Args:
        embeddings: for each picture the A embeddings (K, D) of its matched queries.
        text: for each picture the text embeddings (K, D) of the classes they were matched to.

    Returns:
        Mean over pictures of MSE(E Eᵀ, T Tᵀ); a picture without masks adds 0.

    Source: EBSeg, 'semantic structure consistency loss'.
    """
    total = embeddings[0].new_zeros(())
    for e, t in zip(embeddings, text, strict=True):
        if len(e):
            total = total + F.mse_loss(e @ e.T, t @ t.T)
    return total / len(embeddings)


def region_likeness(embeddings: Tensor, regions: Tensor) -> Tensor:
    """1 − mean cosine of what mask attention says with what CLIP says of the true mask: (K, D) unit rows ×2 -> scalar.

    It needs no name, so it holds mask attention to what CLIP knows, where cross-entropy on the seen classes alone would
    bend it to them.
    """
    return 1 - (embeddings * regions).sum(-1).mean()


def ebseg_losses(
    predictions: Sequence[Supervised],
    targets: Sequence[Targets],
    text: Tensor,
    config: LossConfig,
    *,
    regions: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """All losses, each summed over the predictions, unweighted.

    Args:
        predictions: of the decoder, in order; SSC looks at the last.
        targets: for each picture.
        text: (N, D) unit text embeddings of the training classes.
        config: weights and sampling.
        regions: for each picture what CLIP says of its true masks, (K, D) unit rows; without it there is no `region`.
        generator: source of the random points; torch's own unless given.

    Returns:
        class_a, class_b, mask, dice, structure, region. `weighted` makes one number of them.
    """
    sums: dict[str, Tensor] = {}
    for place, prediction in enumerate(predictions):
        pairs = [
            match(
                prediction.logits_a[i],
                prediction.mask_logits[i],
                target,
                points=config.points,
                costs=config.costs,
                generator=generator,
            )
            for i, target in enumerate(targets)
        ]
        losses = _prediction_losses(prediction, targets, pairs, config, generator)
        if regions is not None and any(len(queries) for queries, _ in pairs):
            said = torch.cat([prediction.embeddings_b[i, queries] for i, (queries, _) in enumerate(pairs)])
            wanted = torch.cat([regions[i][masks] for i, (_, masks) in enumerate(pairs)])
            losses["region"] = region_likeness(said, wanted)
        if place == len(predictions) - 1:
            classes = [target.classes[masks] for target, (_, masks) in zip(targets, pairs, strict=True)]
            embeddings = [
                prediction.embeddings_a[i, queries[classes[i] != NO_NAME]] for i, (queries, _) in enumerate(pairs)
            ]
            related = [text[each[each != NO_NAME]] for each in classes]
            losses["structure"] = structure_consistency(embeddings, related)
        for name, loss in losses.items():
            sums[name] = sums[name] + loss if name in sums else loss
    return sums


def _prediction_losses(
    prediction: Supervised,
    targets: Sequence[Targets],
    pairs: Sequence[tuple[Tensor, Tensor]],
    config: LossConfig,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    background = prediction.logits_a.shape[2] - 1
    wanted = torch.full_like(prediction.logits_a[..., 0], background, dtype=torch.long)
    for i, (queries, masks) in enumerate(pairs):
        wanted[i, queries] = targets[i].classes[masks]
    losses = {
        "class_a": class_loss(prediction.logits_a, wanted, config.background),
        "class_b": class_loss(prediction.logits_b, wanted, config.background),
    }
    logits = torch.cat([prediction.mask_logits[i, queries] for i, (queries, _) in enumerate(pairs)]).float()
    truth = torch.cat([target.masks[masks] for target, (_, masks) in zip(targets, pairs, strict=True)])
    if not len(logits):  # keeps the graph whole, so that every parameter gets a gradient of 0
        nothing = prediction.mask_logits.sum() * 0
        return {**losses, "mask": nothing, "dice": nothing}
    where = uncertain_points(
        logits, config.points, oversample=config.oversample, importance=config.importance, generator=generator
    )
    at_logits = sample_points(logits, where)
    with torch.no_grad():
        at_truth = sample_points(truth, where)
    count = float(len(logits))
    return {
        **losses,
        "mask": mask_bce(at_logits, at_truth, count),
        "dice": dice_loss(at_logits, at_truth, count),
    }


def weighted(losses: dict[str, Tensor], config: LossConfig) -> Tensor:
    """The number that is minimised."""
    total = (
        config.classification * (losses["class_a"] + losses["class_b"])
        + config.mask * losses["mask"]
        + config.dice * losses["dice"]
        + config.structure * losses["structure"]
    )
    return total + config.region * losses["region"] if "region" in losses else total
