"""Agreement of label maps against its definition, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from ebseg_deploy.benchmarks.agreement import label_agreement
from ebseg_deploy.errors import InputError


def test_counts_by_hand() -> None:
    first = np.array([[0, 0, 1], [1, 2, 2]], np.uint8)
    second = np.array([[0, 1, 1], [1, 2, 0]], np.uint8)
    result = label_agreement(first, second, classes=4)
    assert result.pixels == 6
    assert result.pixel_agreement == pytest.approx(4 / 6)
    np.testing.assert_allclose(result.class_iou, [1 / 3, 2 / 3, 1 / 2, np.nan])
    assert result.mean_iou == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)


def test_equal_maps_agree_wholly_and_swapped_labels_not_at_all() -> None:
    labels = np.random.default_rng(0).integers(0, 300, size=(40, 50)).astype(np.uint16)
    same = label_agreement(labels, labels, classes=300)
    assert (same.pixel_agreement, same.mean_iou) == (1.0, 1.0)
    other = label_agreement(labels, (labels + 1) % 300, classes=300)
    assert (other.pixel_agreement, other.mean_iou) == (0.0, 0.0)


def test_a_sum_is_the_agreement_of_the_pictures_together() -> None:
    random = np.random.default_rng(1)
    pairs = [random.integers(0, 5, size=(2, 8, side)).astype(np.uint8) for side in (3, 9)]
    total = label_agreement(*pairs[0], classes=5) + label_agreement(*pairs[1], classes=5)
    together = label_agreement(*np.concatenate(pairs, axis=2), classes=5)
    assert total.pixel_agreement == together.pixel_agreement
    np.testing.assert_array_equal(total.class_iou, together.class_iou)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), r"\(2, 3\) and \(3, 2\)"),
        (np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8), "cannot be compared"),
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 4, np.uint8), "label 4 with 4 classes"),
    ],
)
def test_what_cannot_be_compared(first: np.ndarray, second: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        label_agreement(first, second, classes=4)
