"""Where Q/DQ pairs stand, what is stored, and that the numbers stay near FP32's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ebseg_deploy.calibration.quantize import activations_to_calibrate, insert_qdq
from ebseg_deploy.calibration.quantize_check import cosine
from ebseg_deploy.calibration.quantize_cpu import quantise_for_cpu
from ebseg_deploy.calibration.quantize_products import products
from ebseg_deploy.calibration.quantize_weights import quantised, scale_for
from ebseg_deploy.calibration.quantize_windows import partition_first
from ebseg_deploy.calibration.ranges import Range
from ebseg_deploy.errors import CalibrationError, ExportError
from ebseg_deploy.export.precision.lower import lower
from ebseg_deploy.export.precision.recipes import GraphRecipe, Keep
from hypothesis import given
from hypothesis import strategies as st
from quantizable_graphs import HEADS, TOKENS, WIDTH, attention_graph, image, ranges_of, run, windowed_graph

PATCH = Keep(pattern="patch_embed.proj/Conv", reason="3 channels", precision="fp16")
TABLE = Keep(pattern="attentions.0/MatMul", reason="a table", precision="fp16")
PROJ = Keep(pattern="blocks.0.attn.proj/*", reason="an island", precision="fp32")
LINEAR = {"blocks.0.attn.qkv/MatMul", "blocks.0.attn.proj/MatMul"}
ATTENTION = {"attentions.0/MatMul_3", "attentions.0/MatMul_4"}


def recipe(*keep: Keep, quantised: str = "int8", attention: bool = True, base: str = "fp16") -> GraphRecipe:
    return GraphRecipe(base=base, quantised=quantised, attention=attention, keep=(PATCH, TABLE, *keep))


def made(how: GraphRecipe, *, only: Sequence[str] | None = None) -> tuple[ir.Model, object]:
    proto = attention_graph()
    model = ir.from_proto(proto)
    done = insert_qdq(model, how, ranges_of(proto, activations_to_calibrate(model, how)), only=only)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model, done


def between_pairs(model: ir.Model) -> set[str]:
    """Products both of whose factors come out of a DequantizeLinear."""
    return {
        node.name
        for node in model.graph
        if node.op_type in ("MatMul", "Gemm", "Conv")
        and all(
            value.producer() is not None and value.producer().op_type == "DequantizeLinear" for value in node.inputs[:2]
        )
    }


def touched(model: ir.Model) -> set[str]:
    """Nodes that read a dequantised tensor."""
    return {
        use.node.name for node in model.graph if node.op_type == "DequantizeLinear" for use in node.outputs[0].uses()
    }


def test_kinds_and_work_of_products() -> None:
    found = {product.name: product for product in products(ir.from_proto(attention_graph()))}
    kinds = {name: product.kind for name, product in found.items()}
    assert kinds == {
        "patch_embed.proj/Conv": "convolution",
        "blocks.0.attn.qkv/MatMul": "linear",
        "attentions.0/MatMul": "table",
        "attentions.0/MatMul_3": "attention",
        "attentions.0/MatMul_4": "attention",
        "blocks.0.attn.proj/MatMul": "linear",
    }
    assert found["blocks.0.attn.qkv/MatMul"].macs == TOKENS * WIDTH * 3 * WIDTH
    assert found["attentions.0/MatMul_4"].macs == HEADS * TOKENS * TOKENS * WIDTH // HEADS
    assert found["patch_embed.proj/Conv"].macs == TOKENS * WIDTH * 3


@pytest.mark.parametrize("to", ["int8", "fp8"])
def test_pairs_stand_on_both_factors_of_the_chosen_products_alone(to: str) -> None:
    model, done = made(recipe(quantised=to))
    assert between_pairs(model) == LINEAR | ATTENTION
    # Besides the products, a softmax row's total is taken of what is multiplied.
    assert touched(model) == LINEAR | ATTENTION | {"attentions.0/Softmax/total"}
    assert set(done.nodes) == LINEAR | ATTENTION
    assert {each.node: each.reason for each in done.kept} == {
        "patch_embed.proj/Conv": "3 channels",
        "attentions.0/MatMul": "a table",
    }


def test_no_pair_on_an_island() -> None:
    model, _ = made(recipe(PROJ))
    assert between_pairs(model) == (LINEAR | ATTENTION) - {"blocks.0.attn.proj/MatMul"}
    lower(model, "fp16", (PATCH, TABLE, PROJ))
    island = next(node for node in model.graph if node.name == "blocks.0.attn.proj/MatMul")
    assert [value.dtype for value in island.inputs] == [ir.DataType.FLOAT] * 2
    assert not any(value.producer() and value.producer().op_type.endswith("quantizeLinear") for value in island.inputs)


def test_attention_stays_where_the_recipe_says_so() -> None:
    model, done = made(recipe(attention=False))
    assert between_pairs(model) == LINEAR
    assert any(node.op_type == "Softmax" for node in model.graph)
    assert {each.node for each in done.kept} >= ATTENTION


def test_only_some_products() -> None:
    model, done = made(recipe(), only=["blocks.0.attn.proj/MatMul"])
    assert between_pairs(model) == {"blocks.0.attn.proj/MatMul"}
    assert done.share == pytest.approx(TOKENS * WIDTH * WIDTH / sum(p.macs for p in products(model)))


def test_zero_points_are_zero_and_weights_int8_per_output_channel() -> None:
    model, _ = made(recipe())
    weight = ir.from_proto(attention_graph()).graph.initializers["qkv.weight"].const_value.numpy()
    stored = model.graph.initializers["qkv.weight.int8"].const_value.numpy()
    scale = model.graph.initializers["qkv.weight.scale"].const_value.numpy()
    assert stored.dtype == np.int8
    assert scale.shape == (3 * WIDTH,)
    assert np.abs(stored).max() == 127
    np.testing.assert_allclose(stored * scale, weight, atol=float(scale.max()) * 0.51)
    assert "qkv.weight" not in model.graph.initializers
    zeros = [value.const_value.numpy() for name, value in model.graph.initializers.items() if "zero_point" in name]
    assert zeros
    assert not any(each.any() for each in zeros)


def test_fp8_has_one_scale_a_weight() -> None:
    model, _ = made(recipe(quantised="fp8"))
    assert model.graph.initializers["qkv.weight.fp8"].dtype == ir.DataType.FLOAT8E4M3FN
    assert model.graph.initializers["qkv.weight.scale"].shape == ir.Shape([])
    assert model.opset_imports[""] == 19


@pytest.mark.parametrize(("to", "least"), [("int8", 0.999), ("fp8", 0.997)])
@pytest.mark.parametrize("base", ["fp32", "fp16"])
def test_numbers_stay_near_fp32(to: str, least: float, base: str) -> None:
    model, _ = made(recipe(quantised=to, base=base))
    lower(model, base, (PATCH, TABLE))
    for seed in range(4):
        assert cosine(run(model, image(seed))[0], run(attention_graph(), image(seed))[0]) > least


def test_rewritten_attention_is_exact_before_it_is_rounded() -> None:
    """Codes worth max |k| and rows divided behind the product change nothing in FP32."""
    from ebseg_deploy.calibration.quantize_attention import rewrite_attention

    proto = attention_graph()
    model = ir.from_proto(proto)
    names = activations_to_calibrate(model, recipe())
    assert {"scaled", "positions", "k_across"} <= set(names)
    assert not {"weights", "q_and_positions", "k_and_codes"} & set(names)
    ranges = rewrite_attention(model, products(model), ranges_of(proto, names))
    assert ranges["attentions.0/Softmax/weights.out"].amax == 1.0
    assert not any(node.op_type == "Softmax" for node in model.graph)
    np.testing.assert_allclose(run(model, image())[0], run(proto, image())[0], rtol=1e-5, atol=1e-6)


def test_a_flat_softmax_survives_int8() -> None:
    """Over many tokens a row's weights are all below the step of a scale made for 1; here every row has its own."""
    proto = attention_graph()
    for weight in proto.graph.initializer:
        if weight.name == "root":
            weight.CopyFrom(onnx.numpy_helper.from_array(np.array(1e-3, np.float32), "root"))
    model = ir.from_proto(proto)
    ranges = ranges_of(proto, activations_to_calibrate(model, recipe()))
    insert_qdq(model, recipe(), ranges)
    assert cosine(run(model, image())[0], run(proto, image())[0]) > 0.999


@given(
    amax=st.floats(1e-6, 1e4),
    to=st.sampled_from(["int8", "fp8"]),
    base=st.sampled_from(["fp32", "fp16", "bf16"]),
)
def test_rounding_is_within_half_a_step(amax: float, to: str, base: str) -> None:
    values = np.linspace(-amax, amax, 41, dtype=np.float32)
    scale = scale_for(amax, to, base)
    back = quantised(values, scale, to).astype(np.float32) * scale
    # A step of INT8; of E4M3 1/16 of the value, or of the smallest normal one. And what rounding the scale clips.
    step = scale / 2 if to == "int8" else np.maximum(np.abs(values) / 16, scale * 2.0**-10)
    clipped = np.maximum(np.abs(values) - (127 if to == "int8" else 448) * scale, 0)
    assert np.all(np.abs(back - values) <= step * 1.001 + clipped)


def test_a_weight_of_zeros_stays_zero() -> None:
    scale = scale_for(np.zeros(3, np.float32), "int8", "fp16")
    assert np.all(scale > 0)
    assert not quantised(np.zeros((2, 3), np.float32), scale, "int8").any()


def test_missing_and_endless_ranges_are_refused() -> None:
    proto = attention_graph()
    ranges = ranges_of(proto, activations_to_calibrate(ir.from_proto(proto), recipe()))
    without = {name: each for name, each in ranges.items() if name != "gathered"}
    with pytest.raises(CalibrationError, match=r"blocks\.0\.attn\.proj/MatMul: no range of 'gathered'.*calibrate"):
        insert_qdq(ir.from_proto(proto), recipe(), without)
    endless = {**ranges, "x": Range(low=-1.0, high=float("inf"))}
    with pytest.raises(CalibrationError, match=r"range of 'x' is inf"):
        insert_qdq(ir.from_proto(proto), recipe(), endless)


def test_a_quantised_graph_is_refused() -> None:
    model, _ = made(recipe())
    with pytest.raises(ExportError, match="quantised already"):
        insert_qdq(model, recipe(), {})


def test_cpu_form_has_onnx_runtimes_operators_and_fp32s_numbers() -> None:
    proto = attention_graph()
    model = ir.from_proto(proto)
    done = quantise_for_cpu(model, recipe(base="fp32"))
    assert set(done.nodes) == LINEAR | {"attentions.0/MatMul_3"}
    kinds = [node.op_type for node in model.graph if node.domain == "com.microsoft"]
    assert sorted(kinds) == ["DynamicQuantizeMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"]
    assert not {"qkv.weight", "proj.weight"} & set(model.graph.initializers)
    for seed in range(4):
        assert cosine(run(model, image(seed))[0], run(proto, image(seed))[0]) > 0.999


def test_cpu_scores_in_strips_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from ebseg_deploy.calibration import quantize_cpu

    whole, strips = (ir.from_proto(attention_graph()) for _ in range(2))
    quantise_for_cpu(whole, recipe(base="fp32"))
    monkeypatch.setattr(quantize_cpu, "STRIP_BYTES", HEADS * TOKENS * 4 * 4)  # 4 rows of 9 a strip
    quantise_for_cpu(strips, recipe(base="fp32"))
    assert sum(node.op_type == "Softmax" for node in strips.graph) == 3
    np.testing.assert_allclose(run(strips, image())[0], run(whole, image())[0], rtol=0, atol=1e-6)


def test_windows_are_cut_before_the_product() -> None:
    proto = windowed_graph()
    model = ir.from_proto(proto)
    assert partition_first(model) == 1
    assert [node.op_type for node in model.graph] == [
        *("Relu", "Pad", "Reshape", "Transpose", "Reshape", "MatMul", "Add"),
    ]
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert product.inputs[0].shape == ir.Shape([4, 2, 2, WIDTH])
    feed = {"x": np.random.default_rng(3).normal(size=(1, 3, 3, WIDTH)).astype(np.float32)}
    np.testing.assert_allclose(run(model, feed)[0], run(proto, feed)[0], rtol=1e-5, atol=1e-6)
    assert partition_first(model) == 0


def test_windows_padded_with_anything_but_zeros_stay() -> None:
    assert partition_first(ir.from_proto(windowed_graph(padding=1.0))) == 0
