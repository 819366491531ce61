"""From a builder's log to a census, and from a census to a verdict."""

from __future__ import annotations

import msgspec
import pytest
from ebseg_deploy.contract import GRAPH_NAMES, EngineSettings, EngineSidecar, LayerRecord
from ebseg_deploy.errors import ExportError
from ebseg_deploy.export.engines.census import (
    ALLOWED,
    ISLANDS,
    REQUIRED,
    USUAL,
    check_promise,
    difference,
    take_census,
)
from ebseg_deploy.export.engines.layer_report import read_layers, read_memory
from ebseg_deploy.export.engines.targets import PRECISIONS


def tensor(name: str, dimensions: str, type_: str, order: str = "Row major linear format") -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{dimensions}], Strides: [1], StrideOrder: [0], Datatype: {type_}, "
        f"Format: (Linear) {order} }}"
    )


def line(name: str, kind: str, inputs: list[str], constants: list[str], outputs: list[str], *nodes: str) -> str:
    """As TensorRT for RTX 1.7 writes a layer into its verbose log."""
    listed = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {', '.join(inputs)}], Constants: [ {', '.join(constants)}], "
        f"Outputs: [ {', '.join(outputs)}], TacticName: __tactic_0x12, StreamId: 0, Metadata: {listed}"
    )


SCALE = tensor("alpha", "1", "Float")
REPORT = [
    "[VERBOSE] Layers:",
    line(
        "MatMul_myl0_3",
        "gemm",
        [tensor("x", "1600,768", "Half")],
        [tensor("w", "768,2304", "Half"), SCALE],
        [tensor("y", "1600,2304", "Half")],
        "blocks.0/MatMul",
    ),
    line(
        "blocks.0/MatMul_2_myl0_8",
        "gemm",
        [tensor("q", "12,196,64", "Half"), tensor("k", "12,64,196", "Half")],
        [SCALE],
        [tensor("s", "12,196,196", "Float")],
        "blocks.0/MatMul_2",
    ),
    line(
        "__myl_FcAddDivCastErfCastAddMulMul_myl0_18",
        "runtime_fusion",
        [tensor("x", "1600,768", "Int8")],
        [tensor("bias", "1,3072", "Float"), tensor("w", "768,3072", "Int8")],
        [tensor("y", "1600,3072", "Half")],
        "blocks.0.mlp/MatMul",
        "blocks.0.mlp/Erf",
    ),
    line(
        "patch/Conv_myl0_1",
        "correlation",
        [tensor("i", "1,4,64,64", "Half", "(NHWC)")],
        [tensor("w", "768,4,16,16", "Half")],
        [tensor("o", "1,768,4,4", "Half")],
        "patch/Conv",
    ),
    line(
        "_gemm_mha_v2_myl0_127",
        "kgen",
        [tensor("k", "8,32,400", "Half"), tensor("mask", "1,1,100,400", "Float")],
        [tensor("q", "8,100,32", "Half")],
        [tensor("o", "8,100,32", "Half")],
        "cross/MatMul",
    ),
    line("__myl_CastTran_myl0_0", "kgen", [tensor("a", "4,4", "Float")], [], [tensor("b", "4,4", "Half")], "Cast"),
    line("__myl_AddMul_myl0_1", "kgen", [tensor("a", "4,4", "Half")], [], [tensor("b", "4,4", "Half")]),
    "Name: __mye14555_myl0_3, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, "
    "EventId: 1, Metadata: ",
    line(
        "dynamic_myl0_1",
        "gemm",
        [tensor("x", "1,100,512", "Float"), tensor("t", "1,512,-1", "Float")],
        [SCALE],
        [tensor("y", "1,100,-1", "Float")],
        "head/MatMul",
    ),
    "I/O Tensors:",
]


def test_roles_types_and_work() -> None:
    layers = read_layers(REPORT)
    assert [(layer.role, layer.type, layer.multiply_adds) for layer in layers] == [
        ("gemm", "Half", 1600 * 768 * 2304),
        ("gemm", "Half", 12 * 196 * 64 * 196),
        ("gemm", "Int8", 1600 * 768 * 3072),
        ("convolution", "Half", 768 * 4 * 4 * 4 * 16 * 16),
        ("attention", "Half", None),
        ("cast", "Half", None),
        ("other", "Half", None),
        ("other", None, None),
        ("gemm", "Float", None),
    ]
    assert layers[2].onnx_nodes == ("blocks.0.mlp/MatMul", "blocks.0.mlp/Erf")
    assert layers[0].tactic == "__tactic_0x12"


def test_the_spelling_of_tensorrt_10() -> None:
    (layer,) = read_layers(
        [
            "Name: /blocks.0/MatMul, LayerType: MatrixMultiply, Inputs: [ { Name: x, Location: Device, Dimensions: "
            "[16,8], Format/Datatype: Row major linear FP16 format }, { Name: w, Location: Device, Dimensions: [8,4], "
            "Format/Datatype: Row major linear FP16 format }], Outputs: [ { Name: y, Location: Device, Dimensions: "
            "[16,4], Format/Datatype: Row major linear FP16 format }], ParameterType: MatrixMultiply, TacticName: "
            "sm80_xmma_gemm, StreamId: 0, Metadata: [ONNX Layer: /blocks.0/MatMul]"
        ]
    )
    assert (layer.role, layer.type, layer.multiply_adds) == ("gemm", "Half", 16 * 8 * 4)
    assert layer.tactic == "sm80_xmma_gemm"


def test_only_the_last_report_counts() -> None:
    assert len(read_layers([*REPORT, *REPORT])) == len(read_layers(REPORT))
    assert read_layers(["nothing here", "[INFO] Engine generation completed"]) == ()


def test_memory() -> None:
    log = [
        "[INFO] Total Host Persistent Memory: 80 bytes",
        "[INFO] Max Scratch Memory: 32521728 bytes",
        "[INFO] Total Activation Memory: 32521729 bytes",
        "[INFO] Total Weights Memory: 772 bytes",
    ]
    assert read_memory(log) == {"scratch": 32521728, "activation": 32521729, "weights": 772}


def test_census() -> None:
    census = take_census(read_layers(REPORT))
    assert census.layers == 9
    assert census.products_by_type == {"Half": 4, "Int8": 1, "Float": 1}
    assert (census.fused_attentions, census.casts) == (1, 1)
    assert sum(census.share(kind) for kind in census.products_by_type) == pytest.approx(1)
    assert census.share("Int8") == pytest.approx(
        1600 * 768 * 3072 / (1600 * 768 * (2304 + 3072) + 12 * 196 * 64 * 196 + 768 * 16 * 1024)
    )
    assert take_census([]).share("Half") == 0


def layer(type_: str, role: str = "gemm", node: str = "blocks.0/MatMul") -> LayerRecord:
    return msgspec.convert(
        {
            "name": "x",
            "kind": "gemm",
            "role": role,
            "type": type_,
            "multiply_adds": 10,
            "onnx_nodes": [node],
            "tactic": "",
        },
        LayerRecord,
    )


HALF, FLOAT, INT8, BF16 = (layer(type_) for type_ in ("Half", "Float", "Int8", "BFloat16"))
ADD = layer("Float", role="other")


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
    assert check_promise(layers, "sam_image_encoder", precision).layers == len(layers)


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
        check_promise(layers, "sam_image_encoder", precision)


def test_islands_and_patterns_excuse_fp32_and_nothing_else() -> None:
    check_promise([FLOAT], "open_vocab_head", "fp16")
    with pytest.raises(ExportError, match="1 Int8"):
        check_promise([INT8], "open_vocab_head", "fp16")
    check_promise([HALF, FLOAT], "adab_decoder", "fp16", keep_fp32=["blocks.0/*"])
    with pytest.raises(ExportError, match="1 Float"):
        check_promise([HALF, FLOAT], "adab_decoder", "fp16", keep_fp32=["blocks.1/*"])


def test_every_product_between_qdq_pairs_counts() -> None:
    layers = [INT8, layer("Half", node="blocks.1/MatMul"), layer("Int8", role="other", node="blocks.2/MatMul")]
    nodes = ["blocks.0/MatMul", "blocks.1/MatMul", "blocks.2/MatMul"]
    check_promise(layers, "sam_image_encoder", "int8", quantised_nodes=nodes[:1])
    with pytest.raises(
        ExportError, match=r"2 of 3 products between Q/DQ pairs.*first blocks\.1/MatMul, blocks\.2/MatM"
    ):
        check_promise(layers, "sam_image_encoder", "int8", quantised_nodes=nodes)
    check_promise(layers, "sam_image_encoder", "int8", quantised_nodes=nodes, keep_fp32=["blocks.[12]/*"])
    check_promise([HALF], "sam_image_encoder", "fp16", quantised_nodes=nodes[:1])


def test_decoders_of_int8_bundles_are_half() -> None:
    check_promise([HALF], "adab_decoder", "int8")


def test_tables_speak_of_the_same_precisions() -> None:
    assert set(ALLOWED) == set(PRECISIONS)
    assert set(REQUIRED) | set(USUAL) <= set(PRECISIONS)
    assert {island.graph for island in ISLANDS} <= set(GRAPH_NAMES)
    assert all(island.reason for island in ISLANDS)


def sidecar(layers: list[LayerRecord], **changes: object) -> EngineSidecar:
    plain = {
        "schema_version": 1,
        "plan": {"bytes": 4, "sha256": "00"},
        "graph": "sam_image_encoder",
        "precision": "fp16",
        "size": {"height": 64, "width": 64},
        "model": "ebseg-tiny",
        "spec": {"inputs": [], "outputs": []},
        "source": {},
        "target": "tensorrt-rtx",
        "tensorrt_version": "1.7.1.116",
        "platform": "linux-x86_64",
        "settings": EngineSettings(
            compute_capabilities=("8.6",), profile={}, workspace_bytes=None, tf32=False, keep_fp32=()
        ),
        "memory": {
            "weights_bytes": 1,
            "activation_bytes": 2,
            "scratch_bytes": 3,
            "builder_peak_bytes": 4,
        },
        "layers": layers,
        "build_seconds": 1.0,
        "provenance": {},
    }
    return msgspec.convert(msgspec.to_builtins({**plain, **changes}), EngineSidecar)


def test_the_difference_of_two_engines() -> None:
    first = sidecar([HALF, ADD])
    assert difference(first, first) == []
    second = sidecar([FLOAT, ADD, layer("Half", node="new")], precision="fp32", tensorrt_version="1.8.0.1")
    rows = {what: (one, other) for what, one, other in difference(first, second)}
    assert rows["precision"] == ("fp16", "fp32")
    assert rows["TensorRT"] == ("1.7.1.116", "1.8.0.1")
    assert rows["node blocks.0/MatMul"] == ("Half", "Float")
    assert rows["node new"] == ("absent", "Half")
    assert rows["products in Float"] == ("0", "1")
    assert "target" not in rows
