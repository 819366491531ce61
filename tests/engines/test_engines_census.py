"""From layers to a verdict: promises kept and broken, and how two engines differ."""

from __future__ import annotations

import pytest
from ebseg_deploy.contract import GRAPH_NAMES, ComputeRecord, KeptRecord, LayerRecord
from ebseg_deploy.errors import ExportError
from ebseg_deploy.export.engines.census import Census, check_engine_promise, check_promise, difference
from ebseg_deploy.export.engines.promise import FP32_GRAPHS, LABELS, LAYER_TYPES, QUANTISED_GRAPHS, promise_of
from ebseg_deploy.export.engines.targets import PRECISIONS
from sidecars import make_layer, make_sidecar


def layer(type_: str, role: str = "gemm", node: str = "blocks.0/MatMul", weights: bool = True) -> LayerRecord:
    return make_layer(type_, role, 10, node, has_weights=weights)


HALF, FLOAT, INT8, BF16 = (layer(type_) for type_ in ("Half", "Float", "Int8", "BFloat16"))
ADD = layer("Float", role="other")


def check(
    layers: list[LayerRecord],
    graph: str,
    precision: str,
    compute: ComputeRecord | None = None,
    quantised_nodes: list[str] = [],  # noqa: B006  # never changed
    keep_fp32: list[str] = [],  # noqa: B006
) -> Census:
    promise = promise_of(graph, precision, {graph: compute}, keep_fp32)  # type: ignore[arg-type, dict-item]
    return check_promise(layers, promise, quantised_nodes=quantised_nodes)


@pytest.mark.parametrize(
    ("precision", "layers"),
    [
        ("fp32", [FLOAT, ADD]),
        ("fp16", [HALF, ADD]),
        ("bf16", [BF16, ADD]),
        ("int8", [INT8, HALF, ADD]),
        ("fp8", [layer("FP8"), HALF]),
    ],
)
def test_promises_kept(precision: str, layers: list[LayerRecord]) -> None:
    assert check(layers, "sam_image_encoder", precision).layers == len(layers)


@pytest.mark.parametrize(
    ("precision", "layers", "said"),
    [
        ("fp16", [FLOAT], r"1 of 1 products are not: 1 Float, first blocks\.0/MatMul"),
        ("fp16", [HALF, HALF, FLOAT], "1 of 3 products"),
        ("fp16", [HALF, layer("Float", role="attention")], "1 of 2 products"),
        ("fp16", [HALF, layer("Float", role="convolution")], "1 of 2 products"),
        ("fp16", [HALF, BF16], "1 BFloat16"),
        ("fp32", [FLOAT, HALF], "1 Half"),
        ("bf16", [HALF], "1 Half"),
        ("int8", [INT8, FLOAT], "1 Float"),
        ("int8", [HALF, ADD], "none of its 1 products is Int8"),
        ("fp8", [INT8], "1 Int8"),
        ("fp16", [ADD], "none of its 1 layers gives Half"),
        ("fp16", [], "no layer report"),
    ],
)
def test_promises_broken(precision: str, layers: list[LayerRecord], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        check(layers, "sam_image_encoder", precision)


def test_islands_and_patterns_excuse_fp32_and_nothing_else() -> None:
    check([FLOAT], "open_vocab_head", "fp16")
    with pytest.raises(ExportError, match="1 Int8"):
        check([INT8], "open_vocab_head", "fp16")
    check([HALF, FLOAT], "adab_decoder", "fp16", keep_fp32=["blocks.0/*"])
    with pytest.raises(ExportError, match="1 Float"):
        check([HALF, FLOAT], "adab_decoder", "fp16", keep_fp32=["blocks.1/*"])


def test_every_product_between_qdq_pairs_counts() -> None:
    layers = [INT8, layer("Half", node="blocks.1/MatMul"), layer("Int8", role="other", node="blocks.2/MatMul")]
    nodes = ["blocks.0/MatMul", "blocks.1/MatMul", "blocks.2/MatMul"]
    check(layers, "sam_image_encoder", "int8", quantised_nodes=nodes[:1])
    with pytest.raises(
        ExportError, match=r"2 of 3 products between Q/DQ pairs.*first blocks\.1/MatMul, blocks\.2/MatM"
    ):
        check(layers, "sam_image_encoder", "int8", quantised_nodes=nodes)
    check(layers, "sam_image_encoder", "int8", quantised_nodes=nodes, keep_fp32=["blocks.[12]/*"])
    check([HALF], "sam_image_encoder", "fp16", quantised_nodes=nodes[:1])


def test_decoders_of_int8_bundles_are_half() -> None:
    check([HALF], "adab_decoder", "int8")


def kept(pattern: str, precision: str) -> KeptRecord:
    return KeptRecord(pattern=pattern, precision=precision, reason="measured", nodes=1)  # type: ignore[arg-type]


def test_what_the_recipe_recorded_is_the_promise_whatever_its_name() -> None:
    compute = ComputeRecord(base="fp16", quantised="int8", kept=(kept("blocks.0/*", "fp32"), kept("patch/*", "bf16")))
    islands = [layer("Float", node="blocks.0/MatMul"), layer("BFloat16", node="patch/Conv")]
    check([INT8, *islands], "adab_decoder", "int8-all", compute)
    for wrong, said in (
        (layer("Float", node="patch/Conv"), "1 Float, first patch/Conv"),
        (layer("BFloat16"), "1 BFloat16, first blocks"),
        (layer("Float", node="blocks.1/MatMul"), "1 Float"),
        (layer("FP8"), "1 FP8"),
    ):
        with pytest.raises(ExportError, match=rf"adab_decoder: promised int8-all, but 1 of 4 .*{said}"):
            check([INT8, *islands, wrong], "adab_decoder", "int8-all", compute)
    with pytest.raises(ExportError, match="none of its 1 products is Int8"):
        check([HALF], "adab_decoder", "int8-all", compute)


def test_a_recorded_int8_graph_may_have_no_other_product_than_its_keep_list_says() -> None:
    """Q/DQ pairs that were never there leave nothing between them to be missed: the keep-list tells."""
    compute = ComputeRecord(base="fp16", quantised="int8", kept=(kept("patch/*", "fp16"),))
    patch = layer("Half", role="convolution", node="patch/Conv")
    check([INT8, patch], "sam_image_encoder", "int8", compute)
    lost = layer("Half", node="blocks.3.mlp/MatMul")
    with pytest.raises(ExportError, match=r"1 of 3 products are not: 1 Half, first blocks\.3\.mlp/MatMul"):
        check([INT8, patch, lost], "sam_image_encoder", "int8", compute)
    check([INT8, patch, lost], "sam_image_encoder", "int8", compute, keep_fp32=["blocks.3.mlp/*"])
    attention = layer("Half", node="blocks.3/MatMul_2", weights=False)
    fused = layer("Half", role="attention", node="blocks.4/MatMul_2", weights=False)
    check([INT8, patch, attention, fused], "sam_image_encoder", "int8", compute)
    with pytest.raises(ExportError, match=r"1 of 2 products between Q/DQ pairs .* first blocks\.3/MatMul_2"):
        check([INT8, attention], "sam_image_encoder", "int8", compute, ["blocks.0/MatMul", "blocks.3/MatMul_2"])
    check([INT8, patch, lost], "sam_image_encoder", "int8")  # a label alone promises no more than some


def test_a_graph_kept_whole_promises_its_own_type() -> None:
    head = ComputeRecord(base="fp32", kept=(kept("*", "fp32"),))
    check([FLOAT, ADD], "open_vocab_head", "fp16", head)
    with pytest.raises(ExportError, match="1 Half"):
        check([HALF], "open_vocab_head", "fp16", head)


def test_an_fp16_graph_under_an_int8_label_is_held_to_its_label() -> None:
    with pytest.raises(ExportError, match="none of its 1 products is Int8"):
        check([HALF], "clip_image_encoder", "int8")
    with pytest.raises(ExportError, match="precision 'mine' says nothing of its types"):
        check([HALF], "clip_image_encoder", "mine")


def test_a_merged_engine_keeps_each_graphs_promise() -> None:
    compute = {
        "sam_image_encoder": ComputeRecord(base="fp16", quantised="int8"),
        "adab_decoder": ComputeRecord(base="fp16", kept=(kept("grid/*", "fp32"),)),
        "open_vocab_head": ComputeRecord(base="fp32", kept=(kept("*", "fp32"),)),
    }
    promise = promise_of("merged", "int8", compute, ["adab_decoder/mask/*"])  # type: ignore[arg-type]
    right = [
        layer("Int8", node="sam_image_encoder/blocks.0/MatMul"),
        layer("Half", node="adab_decoder/MatMul"),
        layer("Float", node="adab_decoder/grid/MatMul"),
        layer("Float", node="adab_decoder/mask/MatMul"),
        layer("Float", node="open_vocab_head/MatMul"),
    ]
    quantised = ["sam_image_encoder/blocks.0/MatMul"]
    check_promise(right, promise, quantised_nodes=quantised)
    for wrong, said in (
        (layer("Float", node="sam_image_encoder/grid/MatMul"), "1 Float, first sam_image_encoder/grid/MatMul"),
        (layer("Int8", node="adab_decoder/MatMul_2"), "1 Int8"),
        (layer("Half", node="open_vocab_head/MatMul_2"), "1 Half"),
    ):
        with pytest.raises(ExportError, match=f"engine merged: promised int8.*{said}"):
            check_promise([*right, wrong], promise)
    with pytest.raises(ExportError, match=r"merged: promised int8, but 1 of 5 .*: 1 Half, first sam_image_encoder/x"):
        check_promise([layer("Half", node="sam_image_encoder/x"), *right[1:]], promise)
    with pytest.raises(ExportError, match="merged sam_image_encoder: promised int8, but none of its 0 products is Int"):
        check_promise(right[1:], promise)
    with pytest.raises(ExportError, match=r"merged sam_image_encoder: .* 1 of 2 products between"):
        check_promise(right, promise, quantised_nodes=[*quantised, "sam_image_encoder/lost/MatMul"])


def test_tables_speak_of_the_same_precisions() -> None:
    assert set(LABELS) == set(LAYER_TYPES) == set(PRECISIONS)
    assert {*FP32_GRAPHS, *QUANTISED_GRAPHS} <= set(GRAPH_NAMES)


def test_a_sidecar_without_compute_records_is_held_to_its_label() -> None:
    assert check_engine_promise(make_sidecar([HALF, ADD])).layers == 2
    with pytest.raises(ExportError, match="promised fp16"):
        check_engine_promise(make_sidecar([FLOAT]))
    recorded = {"sam_image_encoder": ComputeRecord(base="fp16", kept=(kept("blocks.0/*", "fp32"),))}
    assert check_engine_promise(make_sidecar([FLOAT, HALF], compute=recorded)).layers == 2


def test_the_difference_of_two_engines() -> None:
    first = make_sidecar([HALF, ADD])
    assert difference(first, first) == []
    second = make_sidecar([FLOAT, ADD, layer("Half", node="new")], precision="fp32", tensorrt_version="1.8.0.1")
    rows = {what: (one, other) for what, one, other in difference(first, second)}
    assert rows["precision"] == ("fp16", "fp32")
    assert rows["TensorRT"] == ("1.7.1.116", "1.8.0.1")
    assert rows["node blocks.0/MatMul"] == ("Half", "Float")
    assert rows["node new"] == ("absent", "Half")
    assert rows["products in Float"] == ("0", "1")
    assert "target" not in rows
