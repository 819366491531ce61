"""The emulated form: FP32 arithmetic, rounded where a half-precision graph rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from ebseg_deploy.export.precision.emulate import emulate
from ebseg_deploy.export.precision.float_types import rounded
from ebseg_deploy.export.precision.lower import lower
from ebseg_deploy.export.precision.recipes import Keep
from precision_models import graph, node, run

X = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
W = np.random.default_rng(2).normal(size=(8, 8)).astype(np.float32)


def chain() -> ir.Model:
    """y = (x·w)² · w, turned over."""
    return graph(
        [
            node("MatMul", ["x", "w"], ["a"], "first/MatMul"),
            node("Mul", ["a", "a"], ["b"], "square/Mul"),
            node("Transpose", ["b"], ["t"], "Transpose", perm=[1, 0]),
            node("MatMul", ["w", "t"], ["y"], "second/MatMul"),
        ],
        {"x": [4, 8]},
        ["y"],
        {"w": W},
    )


@pytest.mark.parametrize("base", ["fp16", "bf16"])
def test_rounds_every_result_once(base: str, tmp_path: Path) -> None:
    def r(values: np.ndarray) -> np.ndarray:
        return rounded(values, base).astype(np.float32)  # type: ignore[arg-type]

    model = chain()
    lower(model, base)  # type: ignore[arg-type]
    # The input, two products and a square; not the transposition, which moves numbers, nor the weights, which are
    # rounded already.
    assert emulate(model) == 4
    w = r(W)
    a = r(r(X) @ w)
    np.testing.assert_array_equal(run(model, {"x": X}, tmp_path)["y"], r(w @ r(a * a).T))


def test_an_island_is_not_rounded(tmp_path: Path) -> None:
    model = chain()
    lower(model, "fp16", [Keep(pattern="square/*", reason="for the test")])
    emulate(model)
    w, x = W.astype(np.float16).astype(np.float32), X.astype(np.float16).astype(np.float32)
    a = (x @ w).astype(np.float16).astype(np.float32)
    # Its result is rounded where it leaves: the transposition moves halves.
    expected = (w @ (a * a).astype(np.float16).astype(np.float32).T).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(run(model, {"x": X}, tmp_path)["y"], expected)


def test_shows_the_overflow_that_a_cpu_hides(tmp_path: Path) -> None:
    """300² is beyond FP16. ONNX Runtime's FP16 graph on a CPU computes in FP32 and never sees it."""

    def model() -> ir.Model:
        made = graph([node("Mul", ["x", "x"], ["s"], "Mul"), node("Sqrt", ["s"], ["y"], "Sqrt")], {"x": [1]}, ["y"], {})
        lower(made, "fp16")
        return made

    x = {"x": np.array([300.0], np.float32)}
    emulated = model()
    emulate(emulated)
    assert np.isinf(run(emulated, x, tmp_path)["y"]).all()
    assert run(model(), x, tmp_path)["y"] == 300.0


def test_weights_stay_stored_in_half() -> None:
    model = chain()
    lower(model, "fp16")
    emulate(model)
    assert [value.dtype for value in model.graph.initializers.values()] == [ir.DataType.FLOAT16]
