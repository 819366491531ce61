"""Figures against definitions, and the balance against what each exponent should do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ebseg_deploy.errors import InputError
from ebseg_deploy.model.ebseg import EBSeg
from ebseg_deploy.training.confusion import Confusion, figures, harmonic_mean
from ebseg_deploy.training.emoji_classes import CLASSES, THINGS
from ebseg_deploy.training.evaluate import ABLATIONS, Balance, Observed, balance_grid, judge, observe, search_balance
from ebseg_deploy.training.initialise import initialise
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from paper_sprites import TINY, paper_scenes
from torch.nn import functional as F

MAPS = arrays.arrays(np.uint8, (6, 7), elements=st.integers(0, 4))


@given(MAPS, MAPS)
def test_figures_are_their_definitions(truth: np.ndarray, given_: np.ndarray) -> None:
    confusion = Confusion(4)
    confusion.add(truth, np.minimum(given_, 3), ignore=4)
    counted = truth != 4
    ious = []
    for cls in range(4):
        true, said = (truth == cls) & counted, (np.minimum(given_, 3) == cls) & counted
        union = (true | said).sum()
        expected = (true & said).sum() / union if union else np.nan
        np.testing.assert_allclose(confusion.iou[cls], expected)
        if true.any():
            ious.append(expected)
            np.testing.assert_allclose(confusion.accuracy[cls], (true & said).sum() / true.sum())
    if ious:
        assert confusion.mean_iou() == pytest.approx(np.mean(ious))
        right = (truth == np.minimum(given_, 3)) & counted
        assert confusion.pixel_accuracy == pytest.approx(right.sum() / counted.sum())
    else:
        assert np.isnan(confusion.mean_iou())


@pytest.mark.parametrize("classes", [2, 7, 40])
def test_figures_equal_torchmetrics(classes: int) -> None:
    """Another library's counts of the same maps, ignored pixels among them: matrix, IoU and accuracies."""
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_confusion_matrix,
        multiclass_jaccard_index,
    )

    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, (5, 31, 17))
    given_ = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, classes, truth.shape))
    truth[rng.random(truth.shape) < 0.1] = 255
    confusion = Confusion(classes)
    for one_truth, one_given in zip(truth, given_, strict=True):
        confusion.add(one_truth, one_given, 255)
    tensors = (torch.from_numpy(given_), torch.from_numpy(truth), classes)
    theirs = multiclass_confusion_matrix(*tensors, ignore_index=255)
    np.testing.assert_array_equal(confusion.counts, theirs.numpy())
    iou = multiclass_jaccard_index(*tensors, ignore_index=255, average="none")
    np.testing.assert_allclose(confusion.iou, iou.numpy(), rtol=1e-6)
    np.testing.assert_allclose(confusion.mean_iou(), float(iou.mean()), rtol=1e-6)
    recall = multiclass_accuracy(*tensors, ignore_index=255, average="none")
    np.testing.assert_allclose(confusion.accuracy, recall.numpy(), rtol=1e-6)
    pixels = multiclass_accuracy(*tensors, ignore_index=255, average="micro")
    assert confusion.pixel_accuracy == pytest.approx(float(pixels), rel=1e-6)


def test_background_is_left_out_of_the_means() -> None:
    confusion = Confusion(3)
    confusion.counts[:] = [[8, 2, 0], [0, 10, 0], [0, 0, 5]]
    result = figures(confusion, np.array([True, False, True]), np.array([False, False, True]))
    assert result.seen_miou == pytest.approx(0.8)
    assert result.new_miou == pytest.approx(10 / 12)
    assert result.background_miou == 1
    assert result.miou == pytest.approx((0.8 + 10 / 12) / 2)
    assert result.harmonic_miou == pytest.approx(2 / (1 / 0.8 + 12 / 10))


def test_harmonic_mean_of_nothing() -> None:
    assert harmonic_mean(0, 0) == 0
    assert np.isnan(harmonic_mean(0.5, float("nan")))


@pytest.mark.parametrize(
    ("truth", "given_", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), "label maps of"),
        (np.full((2, 2), 7), np.zeros((2, 2), int), "label 7 in the truth, wanted below 3 or 255"),
        (np.zeros((2, 2), int), np.full((2, 2), 3), "label 3 in the given"),
    ],
)
def test_maps_that_do_not_fit(truth: np.ndarray, given_: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Confusion(3).add(truth, given_, ignore=255)


def observed_with(truth_in: str) -> tuple[Observed, EBSeg, torch.Tensor]:
    """Scenes of two halves, whose classes one embedding set knows and the others get wrong."""
    torch.manual_seed(0)
    model = EBSeg(TINY)
    initialise(model, 0, sam=False)
    model.ov_classifier.logit_scale.data.fill_(4.0)
    text = F.normalize(torch.randn(len(CLASSES), TINY.clip.embedding_dim), dim=-1)
    labels = torch.zeros(4, 32, 32, dtype=torch.uint8)
    masks = torch.full((4, 2, 8, 8), -20.0)
    masks[:, 0, :, :4] = masks[:, 1, :, 4:] = 20
    wrong = torch.zeros(4, 2, TINY.clip.embedding_dim)
    right = wrong.clone()
    for scene in range(4):
        left, other = 3 * scene, 3 * scene + 2  # a seen and a new thing
        labels[scene, :, :16], labels[scene, :, 16:] = left, other
        right[scene] = text[[left, other]]
        wrong[scene] = text[[left + 1, other + 1]]
    embeddings = {name: right if name == truth_in else wrong for name in "ABD"}
    return (
        Observed(mask_logits=masks, embeddings=(embeddings["A"], embeddings["B"], embeddings["D"]), labels=labels),
        model,
        text,
    )


@pytest.mark.parametrize("knowing", ["A", "B", "D"])
def test_each_ablation_reads_its_own_embeddings(knowing: str) -> None:
    observed, model, text = observed_with(knowing)
    for name in "ABD":
        result = judge(observed, model, text, ABLATIONS[f"{name} only"])
        assert result.seen_miou == pytest.approx(float(name == knowing))
        assert result.new_miou == pytest.approx(float(name == knowing))


def test_search_finds_who_knows() -> None:
    observed, model, text = observed_with("B")
    best, tried = search_balance(observed, model, text)
    assert best.gamma > 0.4
    assert len(tried) == len(balance_grid())
    assert max(figures.harmonic_miou for _, figures in tried) == pytest.approx(1)


def test_beta_is_for_new_classes_alone() -> None:
    observed, model, text = observed_with("D")
    result = judge(observed, model, text, Balance(alpha=0, beta=1, gamma=0))
    assert result.seen_miou < 0.2
    assert result.new_miou > 0.8


def test_observe_runs_the_deployed_computation() -> None:
    torch.manual_seed(0)
    model = EBSeg(TINY)
    initialise(model, 0, sam=True)
    observed = observe(model, paper_scenes("val"), scenes=3, size=128, at_once=2)
    assert observed.mask_logits.shape == (3, 10, 32, 32)
    assert observed.labels.shape == (3, 128, 128)
    assert observed.labels.max() < len(CLASSES)
    assert (observed.labels < len(THINGS)).any()


def test_grid_keeps_exponents_in_range() -> None:
    for balance in balance_grid():
        assert 0 <= balance.alpha <= balance.beta
        assert balance.beta + balance.gamma <= 1 + 1e-9
