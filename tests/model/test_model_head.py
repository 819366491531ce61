"""The open-vocabulary head against the paper's formula in float64, spelled out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from ebseg_deploy.model.adab_decoder import OpenVocabHead

Floats = npt.NDArray[np.float64]
B = {"alpha": 0.09, "beta": 0.3, "gamma": 0.7}
L = {"alpha": 0.12, "beta": 0.4, "gamma": 0.6}


def softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Floats = e / e.sum(axis=-1, keepdims=True)
    return result


def balanced(
    sets: list[Floats], text: Floats, seen: Floats, scale: float, *, alpha: float, beta: float, gamma: float
) -> Floats:
    """Class probabilities (Q, N) by the formula."""
    logits_a, logits_b, logits_d = (scale * (x @ text.T) for x in sets)
    p_a, p_b, p_d = (softmax(x[:, :-1]) for x in (logits_a, logits_b, logits_d))
    unused = round(1 - beta - gamma, 9)  # 0 for the published variants: A says nothing of new classes
    old = np.log(1e-8 + p_a ** (1 - alpha - gamma) * p_d**alpha * p_b**gamma)
    new = np.log(1e-8 + p_a**unused * p_d**beta * p_b**gamma)
    mixed = softmax(np.where(seen == 1, old, new))
    background = softmax(logits_a)[:, -1:]
    joint = np.concatenate((mixed * (1 - background), background), axis=1)
    return softmax(np.log(joint + 1e-8))[:, :-1]


def inputs(queries: int, classes: int, seed: int = 0) -> tuple[list[Floats], Floats, Floats]:
    random = np.random.default_rng(seed)
    sets = [random.normal(size=(queries, 16)) for _ in range(3)]
    sets = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in sets]
    text = random.normal(size=(classes + 1, 16))
    seen = (np.arange(classes) % 2).astype(np.float64)
    return sets, text / np.linalg.norm(text, axis=1, keepdims=True), seen


def ours(sets: list[Floats], text: Floats, seen: Floats, shares: dict[str, float], scale: float) -> Floats:
    head = OpenVocabHead(**shares, logit_scale=scale)
    tensors = [torch.from_numpy(x.astype(np.float32))[None] for x in sets]
    words, flags = (torch.from_numpy(x.astype(np.float32)) for x in (text, seen))
    found = head(*tensors, words, flags)[0]
    assert torch.isfinite(found).all()
    result: Floats = found.double().numpy()
    return result


@pytest.mark.parametrize("shares", [B, L], ids=["b", "l"])
@pytest.mark.parametrize("classes", [1, 2, 7, 150, 847])
@pytest.mark.parametrize("scale", [1.0, 30.0, 100.0])
def test_published_formula(shares: dict[str, float], classes: int, scale: float) -> None:
    sets, text, seen = inputs(20, classes)
    sets[0] *= 3
    expected = balanced(sets, text, seen, scale, **shares)
    np.testing.assert_allclose(ours(sets, text, seen, shares, scale), expected, rtol=0, atol=2e-4)
    assert (expected.sum(axis=1) < 1).all()


@pytest.mark.parametrize("shares", [B, L], ids=["b", "l"])
@pytest.mark.parametrize("length", [10.0, 1000.0])
def test_extreme_logits(shares: dict[str, float], length: float) -> None:
    """Probabilities that are exactly 0 in float32 keep their logarithms."""
    sets, text, seen = inputs(50, 9, seed=1)
    sets = [x * length for x in sets]
    expected = balanced(sets, text, seen, 100.0, **shares)
    np.testing.assert_allclose(ours(sets, text, seen, shares, 100.0), expected, rtol=0, atol=5e-3)
    assert (expected.max(axis=1) > 0.9).any()


def test_zero_embeddings_of_an_empty_mask() -> None:
    sets, text, seen = inputs(4, 5)
    sets[2][:] = 0
    expected = balanced(sets, text, seen, 100.0, **B)
    np.testing.assert_allclose(ours(sets, text, seen, B, 100.0), expected, rtol=0, atol=2e-5)


def test_background_takes_its_share() -> None:
    sets, text, seen = inputs(3, 4)
    sets[0][0] = text[-1] * 10  # a query that is background and nothing else
    assert ours(sets, text, seen, B, 100.0)[0].sum() < 1e-6


def test_seen_flag_chooses_the_share_of_d() -> None:
    sets, text, _ = inputs(6, 5)
    as_seen = ours(sets, text, np.ones(5), B, 30.0)
    as_new = ours(sets, text, np.zeros(5), B, 30.0)
    assert np.abs(as_seen - as_new).max() > 1e-2
    other = ours(sets, text, np.zeros(5), {**B, "alpha": 0.2}, 30.0)
    np.testing.assert_array_equal(other, as_new)  # α is of seen classes alone


@pytest.mark.parametrize("shares", [B, L], ids=["b", "l"])
def test_a_says_nothing_of_new_classes(shares: dict[str, float]) -> None:
    """1 − β − γ is 0, or 5.6e-17 as floats have it; only A's background share is left."""
    random = np.random.default_rng(3)
    text = np.eye(6, 16)
    sets = [random.normal(size=(8, 16)) for _ in range(3)]
    other = [sets[0].copy(), *sets[1:]]
    other[0][:, :5] = sets[0][:, [3, 4, 0, 1, 2]]  # other classes, the same background
    new, seen = np.zeros(5), np.ones(5)
    as_new = ours(sets, text, new, shares, 10.0)
    np.testing.assert_allclose(ours(other, text, new, shares, 10.0), as_new, rtol=0, atol=1e-6)
    assert np.abs(ours(other, text, seen, shares, 10.0) - ours(sets, text, seen, shares, 10.0)).max() > 1e-2
