"""Losses against closed forms, a brute-force matching, and numerical gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from ebseg_deploy.training.losses import (
    LossConfig,
    Supervised,
    class_loss,
    dice_loss,
    ebseg_losses,
    mask_bce,
    structure_consistency,
    weighted,
)
from ebseg_deploy.training.matching import NO_NAME, MatchCosts, Targets, match, pairwise_dice_cost, pairwise_mask_cost
from ebseg_deploy.training.points import random_points, sample_points, uncertain_points
from torch.nn import functional as F


def test_mask_bce_of_undecided_logits_is_log_2_per_mask() -> None:
    truth = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    assert mask_bce(torch.zeros(2, 4), truth, 2.0).item() == pytest.approx(math.log(2))


def test_dice_of_certain_masks() -> None:
    truth = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    right = dice_loss(truth * 200 - 100, truth, 1.0)
    wrong = dice_loss(100 - truth * 200, truth, 1.0)
    assert right.item() == pytest.approx(0, abs=1e-6)
    assert wrong.item() == pytest.approx(1 - 1 / 5)  # no overlap: 1 − (0 + 1) / (2 + 2 + 1)


def test_class_loss_weighs_the_background() -> None:
    logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    wanted = torch.tensor([[0, 2]])
    of_class = -math.log(math.exp(2) / (math.exp(2) + 2))
    of_background = math.log(3)
    expected = (of_class + 0.1 * of_background) / 1.1
    assert class_loss(logits, wanted, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_structure_consistency_closed_form() -> None:
    e = torch.eye(2)
    t = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # T Tᵀ has 0.6 off the diagonal, E Eᵀ 0
    assert structure_consistency([e], [t]).item() == pytest.approx(2 * 0.36 / 4)
    nothing = torch.zeros(0, 2)
    assert structure_consistency([e, nothing], [t, nothing]).item() == pytest.approx(0.36 / 4)
    assert structure_consistency([t], [t]).item() == 0


def test_structure_consistency_ignores_a_common_rotation() -> None:
    generator = torch.Generator().manual_seed(1)
    t = F.normalize(torch.randn(5, 8, generator=generator), dim=-1)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    assert structure_consistency([t @ rotation], [t]).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["bce", "dice", "structure", "points", "class"])
def test_gradients(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    truth = (torch.rand(3, 6, generator=generator) > 0.5).double()
    points = torch.rand(3, 5, 2, generator=generator).double()
    text = F.normalize(torch.randn(3, 6, dtype=torch.float64, generator=generator), dim=-1)
    functions = {
        "bce": lambda x: mask_bce(x, truth, 3.0),
        "dice": lambda x: dice_loss(x, truth, 3.0),
        "structure": lambda x: structure_consistency([x], [text]),
        "points": lambda x: sample_points(x.reshape(3, 2, 3), points),
        "class": lambda x: class_loss(x[None], torch.tensor([[0, 5, 2]]), 0.1),
    }
    assert torch.autograd.gradcheck(functions[name], (x,))


def test_pairwise_costs_are_the_losses_of_each_pair() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 7, generator=generator)
    truth = (torch.rand(3, 7, generator=generator) > 0.5).float()
    bce, dice = pairwise_mask_cost(logits, truth), pairwise_dice_cost(logits, truth)
    for q, k in itertools.product(range(4), range(3)):
        assert bce[q, k].item() == pytest.approx(mask_bce(logits[q : q + 1], truth[k : k + 1], 1).item(), rel=1e-5)
        assert dice[q, k].item() == pytest.approx(dice_loss(logits[q : q + 1], truth[k : k + 1], 1).item(), rel=1e-5)


def _picture(queries: int, masks: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randperm(6, generator=generator)[:masks]
    truth = (torch.rand(masks, 16, 16, generator=generator) > 0.6).float()
    return (
        torch.randn(queries, 7, generator=generator),
        torch.randn(queries, 8, 8, generator=generator) * 3,
        Targets(classes=classes, masks=truth),
    )


@pytest.mark.parametrize("seed", range(4))
def test_matching_is_the_cheapest_of_all(seed: int) -> None:
    class_logits, mask_logits, targets = _picture(5, 3, seed)
    costs = MatchCosts()
    queries, masks = match(
        class_logits, mask_logits, targets, points=40, costs=costs, generator=torch.Generator().manual_seed(9)
    )
    where = random_points(1, 40, torch.Generator().manual_seed(9))
    logits = sample_points(mask_logits, where.expand(5, -1, -1))
    truth = sample_points(targets.masks, where.expand(3, -1, -1))
    cost = (
        -2 * class_logits.softmax(-1)[:, targets.classes]
        + 5 * pairwise_mask_cost(logits, truth)
        + 5 * pairwise_dice_cost(logits, truth)
    )
    cheapest = min(sum(cost[q, k].item() for k, q in enumerate(p)) for p in itertools.permutations(range(5), 3))
    assert sorted(masks.tolist()) == [0, 1, 2]
    assert cost[queries, masks].sum().item() == pytest.approx(cheapest, rel=1e-5)


def test_an_object_without_a_name_is_matched_by_its_mask_and_taught_no_class() -> None:
    class_logits, mask_logits, targets = _picture(5, 3, 1)
    nameless = Targets(classes=torch.full((3,), NO_NAME), masks=targets.masks)
    pairs = [
        match(logits, mask_logits, nameless, points=40, costs=MatchCosts(), generator=torch.Generator().manual_seed(9))
        for logits in (class_logits, 100 * class_logits.flip(0))
    ]
    assert torch.equal(pairs[0][0], pairs[1][0])  # whatever the classes say
    wanted = torch.tensor([[NO_NAME, 5, 2]])
    logits = torch.randn(1, 3, 6)
    assert class_loss(logits, wanted, 0.1).item() == pytest.approx(class_loss(logits[:, 1:], wanted[:, 1:], 0.1).item())
    prediction = Supervised(
        mask_logits=mask_logits[None],
        embeddings_a=F.normalize(torch.randn(1, 5, 4), dim=-1),
        logits_a=class_logits[None],
        logits_b=class_logits[None],
        embeddings_b=torch.zeros(1, 5, 4),
    )
    text = F.normalize(torch.randn(6, 4), dim=-1)
    config = LossConfig(points=40)
    losses = ebseg_losses([prediction], [nameless], text, config, generator=torch.Generator().manual_seed(9))
    assert losses["structure"] == 0
    assert losses["mask"] > 0
    unmatched = torch.ones(5, dtype=torch.bool)
    unmatched[pairs[0][0]] = False
    background = F.cross_entropy(class_logits[unmatched], torch.full((2,), 6))
    assert losses["class_a"].item() == pytest.approx(background.item(), rel=1e-5)


def test_a_picture_without_masks_matches_nothing() -> None:
    class_logits, mask_logits, _ = _picture(5, 3, 0)
    empty = Targets(classes=torch.zeros(0, dtype=torch.long), masks=torch.zeros(0, 16, 16))
    queries, masks = match(class_logits, mask_logits, empty, points=10, costs=MatchCosts())
    assert len(queries) == len(masks) == 0


def test_points_read_pixel_centres() -> None:
    maps = torch.arange(12.0).reshape(1, 3, 4)
    centres = torch.tensor([[[(x + 0.5) / 4, (y + 0.5) / 3] for y in range(3) for x in range(4)]])
    torch.testing.assert_close(sample_points(maps, centres)[0], torch.arange(12.0))


def test_uncertain_points_are_where_the_sign_changes() -> None:
    ramp = torch.linspace(-10, 10, 64).expand(1, 64, 64)  # undecided in the middle columns
    points = uncertain_points(ramp, 200, generator=torch.Generator().manual_seed(0))
    distance = (points[0, :, 0] - 0.5).abs()
    assert points.shape == (1, 200, 2)
    assert (distance[:150] < 0.2).all()
    assert (distance[150:] > 0.2).any()


def test_all_losses_fall_to_their_floor_for_a_perfect_prediction() -> None:
    text = torch.eye(3)
    truth = torch.zeros(2, 32, 32)
    truth[0, :, :16], truth[1, :, 16:] = 1, 1
    targets = [Targets(classes=torch.tensor([2, 0]), masks=truth)]
    small = F.avg_pool2d(truth[None], 4)[0]
    mask_logits = torch.cat(((small - 0.5) * 60, torch.full((1, 8, 8), -30.0)))[None]
    logits = torch.full((1, 3, 4), -20.0)
    logits[0, 0, 2] = logits[0, 1, 0] = logits[0, 2, 3] = 20
    a = torch.stack((text[2], text[0], text[1]))[None]
    right = Supervised(mask_logits=mask_logits, embeddings_a=a, logits_a=logits, logits_b=logits, embeddings_b=a)
    config = LossConfig(points=256)
    perfect = ebseg_losses([right], targets, text, config, generator=torch.Generator().manual_seed(0))
    assert {name: round(loss.item(), 3) for name, loss in perfect.items() if name.startswith(("class", "str"))} == {
        "class_a": 0, "class_b": 0, "structure": 0,
    }  # fmt: skip
    assert perfect["dice"].item() < 0.15  # the sampled points crowd at the border
    wrong = right._replace(mask_logits=-mask_logits, logits_a=-logits)
    worse = ebseg_losses([wrong], targets, text, config, generator=torch.Generator().manual_seed(0))
    assert weighted(worse, config) > 10 * weighted(perfect, config)


def test_region_likeness_compares_matched_queries_with_their_own_masks() -> None:
    class_logits, mask_logits, targets = _picture(5, 3, 1)
    text = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(5)), dim=-1)
    regions = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(6)), dim=-1)
    config = LossConfig(points=64, region=7.0)
    queries, masks = match(
        class_logits, mask_logits, targets, points=64, costs=config.costs, generator=torch.Generator().manual_seed(0)
    )
    said = torch.zeros(1, 5, 4)
    said[0, queries] = regions[masks]

    def losses(embeddings_b: torch.Tensor, taught: list[torch.Tensor] | None) -> dict[str, torch.Tensor]:
        prediction = Supervised(
            mask_logits=mask_logits[None], embeddings_a=torch.ones(1, 5, 4), logits_a=class_logits[None],
            logits_b=class_logits[None], embeddings_b=embeddings_b,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        return ebseg_losses([prediction], [targets], text, config, regions=taught, generator=generator)

    assert losses(said, [regions])["region"].item() == pytest.approx(0, abs=1e-6)
    opposite = losses(-said, [regions])
    assert opposite["region"].item() == pytest.approx(2)
    published = losses(-said, None)
    assert "region" not in published
    assert (weighted(opposite, config) - weighted(published, config)).item() == pytest.approx(7.0 * 2, rel=1e-4)


def test_losses_add_up_over_predictions_and_ssc_looks_at_the_last() -> None:
    class_logits, mask_logits, targets = _picture(5, 3, 1)
    text = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(5)), dim=-1)
    one = Supervised(
        mask_logits=mask_logits[None], embeddings_a=torch.ones(1, 5, 4), logits_a=class_logits[None],
        logits_b=class_logits[None], embeddings_b=torch.zeros(1, 5, 4),
    )  # fmt: skip
    config = LossConfig(points=64)
    single = ebseg_losses([one], [targets], text, config, generator=torch.Generator().manual_seed(0))
    double = ebseg_losses([one, one], [targets], text, config, generator=torch.Generator().manual_seed(0))
    assert double["mask"].item() == pytest.approx(2 * single["mask"].item(), rel=0.2)  # other random points
    first = one._replace(embeddings_a=torch.zeros(1, 5, 4))
    changed = ebseg_losses([first, one], [targets], text, config, generator=torch.Generator().manual_seed(0))
    assert changed["structure"].item() == double["structure"].item()


def test_a_batch_without_any_mask_still_gives_gradients() -> None:
    empty = Targets(classes=torch.zeros(0, dtype=torch.long), masks=torch.zeros(0, 16, 16))
    mask_logits = torch.randn(1, 5, 8, 8, requires_grad=True)
    prediction = Supervised(
        mask_logits=mask_logits, embeddings_a=torch.ones(1, 5, 4), logits_a=torch.zeros(1, 5, 7),
        logits_b=torch.zeros(1, 5, 7), embeddings_b=torch.zeros(1, 5, 4),
    )  # fmt: skip
    config = LossConfig(points=16, region=5.0)
    losses = ebseg_losses([prediction], [empty], torch.eye(6, 4), config, regions=[torch.zeros(0, 4)])
    weighted(losses, config).backward()
    assert mask_logits.grad is not None
    assert not mask_logits.grad.any()
