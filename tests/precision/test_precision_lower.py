"""Lowering: which type each node computes in, where casts stand, and what cannot be lowered."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from ebseg_deploy.errors import ExportError
from ebseg_deploy.export.precision.lower import Saturated, lower
from ebseg_deploy.export.precision.recipes import Keep
from onnx import TensorProto
from precision_models import casts_in_a_row, graph, kinds, node, run, type_of

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


def keep(*patterns: str) -> list[Keep]:
    return [Keep(pattern=pattern, reason="for the test") for pattern in patterns]


def block() -> ir.Model:
    """x (4, 8) -> linear -> norm -> linear -> y, with the norm's output given out as well."""
    random = np.random.default_rng(0)
    return graph(
        [
            node("MatMul", ["x", "w1"], ["a"], "first/MatMul"),
            node("LayerNormalization", ["a", "scale", "shift"], ["n"], "norm/LayerNormalization"),
            node("Reshape", ["n", "shape"], ["r"], "Reshape"),
            node("MatMul", ["r", "w2"], ["b"], "second/MatMul"),
            node("Add", ["b", "x"], ["y"], "Add"),
        ],
        {"x": [4, 8]},
        ["y", "n"],
        {
            "w1": random.normal(size=(8, 8)).astype(np.float32),
            "w2": random.normal(size=(8, 8)).astype(np.float32),
            "scale": np.ones(8, np.float32),
            "shift": np.zeros(8, np.float32),
            "shape": np.array([4, 8]),
        },
    )


X = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)


def test_border_stays_fp32_and_the_inside_is_half(tmp_path: Path) -> None:
    expected = run(block(), {"x": X}, tmp_path)
    model = block()
    done = lower(model, "fp16")
    assert [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)] == [FULL, FULL, FULL]
    assert [value.name for value in model.graph.outputs] == ["y", "n"]
    assert done.nodes == {"fp16": 5}
    assert type_of(model, "norm/LayerNormalization") == HALF
    # One cast of x for both who read it, one per output; an output that is read inside is read in half precision.
    assert done.casts == kinds(model).count("Cast") == 3
    got = run(model, {"x": X}, tmp_path)
    for name, values in expected.items():
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], values, atol=2e-2)
        assert (got[name] != values).any()  # weights were rounded


def test_an_island_has_casts_on_its_borders_alone(tmp_path: Path) -> None:
    model = block()
    done = lower(model, "fp16", keep("norm/*"))
    assert done.nodes == {"fp16": 4, "fp32": 1}
    assert [(each.pattern, each.nodes) for each in done.kept] == [("norm/*", 1)]
    assert type_of(model, "norm/LayerNormalization") == FULL
    assert type_of(model, "Reshape") == HALF
    # x down, a up, n down, y up; the output n is the island's own.
    assert done.casts == 4
    assert casts_in_a_row(model) == []
    run(model, {"x": X}, tmp_path)


def test_weights_are_stored_in_the_type_of_who_reads_them() -> None:
    model = block()
    lower(model, "fp16", keep("second/*"))
    types = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert types["w2"] == FULL
    assert types["w1.fp16"] == HALF
    assert "w1" not in types
    stored = model.graph.initializers["w1.fp16"].const_value
    assert stored is not None
    assert stored.numpy().dtype == np.float16


def test_a_constant_read_in_two_types_is_stored_twice() -> None:
    model = graph(
        [node("Add", ["x", "c"], ["a"], "a/Add"), node("Mul", ["a", "c"], ["y"], "b/Mul")],
        {"x": [3]},
        ["y"],
        {"c": np.array([1.0, 2.0, 3.0], np.float32)},
    )
    lower(model, "fp16", keep("b/*"))
    assert {name: value.dtype for name, value in model.graph.initializers.items()} == {"c": FULL, "c.fp16": HALF}


def test_what_moves_values_between_islands_joins_them() -> None:
    model = graph(
        [
            node("Exp", ["x"], ["e"], "e/Exp"),
            node("Transpose", ["e"], ["t"], "Transpose", perm=[1, 0]),
            node("Reshape", ["t", "shape"], ["r"], "Reshape"),
            node("Log", ["r"], ["y"], "l/Log"),
        ],
        {"x": [2, 3]},
        ["y"],
        {"shape": np.array([6])},
    )
    done = lower(model, "fp16", keep("e/*", "l/*"))
    # Transpose is read by Reshape, which is asked after it: both must have joined.
    assert done.casts == 0
    assert done.nodes == {"fp32": 4}


def test_a_decision_is_taken_in_the_type_of_what_it_sees(tmp_path: Path) -> None:
    """Token ids: 49,406 and 49,407 are one number in FP16, and the larger one marks the end of a text."""
    model = graph(
        [
            node("Cast", ["tokens"], ["f"], "Cast", to=TensorProto.FLOAT),
            node("ArgMax", ["f"], ["i"], "ArgMax", axis=0, keepdims=0),
            node("Gather", ["rows", "i"], ["y"], "Gather", axis=0),
        ],
        {"tokens": [3]},
        ["y"],
        {"rows": np.array([[0.0], [1.0], [2.0]], np.float32)},
        input_types={"tokens": TensorProto.INT32},
    )
    lower(model, "fp16")
    assert run(model, {"tokens": np.array([49406, 7, 49407], np.int32)}, tmp_path)["y"] == [2.0]


def test_a_comparison_of_halves_is_one_of_halves() -> None:
    model = graph(
        [
            node("Mul", ["x", "c"], ["m"], "Mul"),
            node("Less", ["m", "zero"], ["b"], "Less"),
            node("Cast", ["b"], ["y"], "Cast", to=TensorProto.FLOAT),
        ],
        {"x": [3]},
        ["y"],
        {"c": np.array(2.0, np.float32), "zero": np.array(0.0, np.float32)},
    )
    done = lower(model, "fp16")
    assert done.nodes == {"fp16": 3}
    assert done.casts == 2


def test_scales_of_a_resize_stay_fp32(tmp_path: Path) -> None:
    model = graph(
        [node("Resize", ["x", "", "scales"], ["y"], "Resize", mode="linear")],
        {"x": [1, 1, 2, 2]},
        ["y"],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    )
    lower(model, "fp16")
    assert type_of(model, "Resize") == HALF
    assert model.graph.initializers["scales"].dtype == FULL
    assert run(model, {"x": np.ones((1, 1, 2, 2), np.float32)}, tmp_path)["y"].shape == (1, 1, 4, 4)


@pytest.mark.parametrize("value", [-1e9, 1e9])
def test_a_mask_beyond_the_range_saturates(value: float, tmp_path: Path) -> None:
    model = graph(
        [node("Add", ["x", "mask"], ["y"], "Add")], {"x": [2]}, ["y"], {"mask": np.array([0, value], np.float32)}
    )
    assert lower(model, "fp16").saturated == (Saturated(node="Add", constant="mask", values=1, type="fp16"),)
    got = run(model, {"x": np.zeros(2, np.float32)}, tmp_path)["y"]
    assert got.tolist() == [0, math.copysign(65504, value)]


def test_an_infinite_mask_stays_infinite(tmp_path: Path) -> None:
    mask = np.array([0, -math.inf], np.float32)
    model = graph([node("Add", ["x", "mask"], ["y"], "Add")], {"x": [2]}, ["y"], {"mask": mask})
    assert lower(model, "fp16").saturated == ()
    assert run(model, {"x": np.zeros(2, np.float32)}, tmp_path)["y"].tolist() == [0, -math.inf]


def test_a_weight_beyond_the_range_is_refused() -> None:
    model = graph(
        [node("MatMul", ["x", "w"], ["y"], "m/MatMul")], {"x": [1, 1]}, ["y"], {"w": np.full((1, 1), 7e4, np.float32)}
    )
    with pytest.raises(ExportError, match=r"node m/MatMul: weight w is beyond the range of FP16"):
        lower(model, "fp16")


def test_an_epsilon_that_would_be_0_is_refused() -> None:
    def model() -> ir.Model:
        return graph(
            [node("Add", ["x", "eps"], ["y"], "n/Add")], {"x": [1]}, ["y"], {"eps": np.array(1e-8, np.float32)}
        )

    with pytest.raises(ExportError, match=r"node n/Add: constant eps is 0 in FP16"):
        lower(model(), "fp16")
    assert lower(model(), "fp16", keep("n/*")).nodes == {"fp32": 1}
    assert lower(model(), "bf16").nodes == {"bf16": 1}


def test_lowering_twice_is_refused() -> None:
    model = block()
    lower(model, "fp16")
    with pytest.raises(ExportError, match="already"):
        lower(model, "fp16")


def test_fp32_changes_nothing() -> None:
    model, before = block(), kinds(block())
    done = lower(model, "fp32", keep("*"))
    assert kinds(model) == before
    assert (done.casts, done.nodes) == (0, {"fp32": 5})
    assert model.opset_imports[""] == 18


def test_q_dq_pairs_take_scales_of_the_base_type(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    whole = random.integers(-127, 128, size=(8, 8)).astype(np.int8)
    model = graph(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"], "q/QuantizeLinear"),
            node("DequantizeLinear", ["q", "s", "z"], ["d"], "q/DequantizeLinear"),
            node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], "w/DequantizeLinear", axis=1),
            node("MatMul", ["d", "wd"], ["y"], "MatMul"),
        ],
        {"x": [4, 8]},
        ["y"],
        {
            "w": whole,
            "s": np.array(1 / 32, np.float32),
            "z": np.array(0, np.int8),
            "sw": np.full(8, 1 / 64, np.float32),
            "zw": np.zeros(8, np.int8),
        },
    )
    done = lower(model, "fp16")
    assert model.opset_imports[""] == 19
    assert {name: value.dtype for name, value in model.graph.initializers.items() if name.startswith("s")} == {
        "s.fp16": HALF,
        "sw.fp16": HALF,
    }
    assert model.graph.initializers["w"].dtype == ir.DataType.INT8
    assert done.casts == 2
    got = run(model, {"x": X}, tmp_path)["y"]
    quantised = np.clip(np.rint(X.astype(np.float16).astype(np.float32) * 32), -128, 127) / 32
    np.testing.assert_allclose(got, quantised @ (whole / 64), atol=2e-2)


def test_a_graph_inside_a_node_is_refused() -> None:
    from onnx import helper

    branch = helper.make_graph([], "b", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])])
    model = ir.serde.deserialize_model(
        helper.make_model(
            helper.make_graph(
                [node("If", ["c"], ["y"], "choose/If", then_branch=branch, else_branch=branch)],
                "g",
                [
                    helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                    helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
                ],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
            )
        )
    )
    with pytest.raises(ExportError, match="choose/If: If has a graph inside"):
        lower(model, "fp16")
