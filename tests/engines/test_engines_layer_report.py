"""From a builder's log to layers, and from layers to a census."""

from __future__ import annotations

import pytest
from ebseg_deploy.contract import LayerRecord
from ebseg_deploy.export.engines.census import take_census
from ebseg_deploy.export.engines.layer_report import read_layers, read_memory


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
    assert [layer.has_weights for layer in layers] == [True, False, True, True, False, False, False, False, False]


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


def attention(*inputs: str, output: str, constants: tuple[str, ...] = ()) -> LayerRecord:
    def named(shapes: tuple[str, ...]) -> list[str]:
        return [tensor(str(i), shape, "Half") for i, shape in enumerate(shapes)]

    text = line(
        "_gemm_mha_v2_myl0_1", "kgen", named(inputs), named(constants), [tensor("o", output, "Half")], "x/MatMul"
    )
    return read_layers([text])[0]


def test_the_work_of_a_fused_attention() -> None:
    """By closed form: 12 heads of width 64 over 401 tokens; 8 of 32, 100 queries on 400 places, V 16 wide."""
    whole = attention("12,401,64", "12,64,401", "12,401,64", output="12,401,64")
    assert (whole.role, whole.multiply_adds) == ("attention", 2 * 12 * 401 * 401 * 64)
    crossed = attention("8,32,400", "1,1,100,400", "8,400,16", "8,100,32", output="8,100,16")
    assert crossed.multiply_adds == 8 * 100 * 400 * (32 + 16)
    constant = attention("8,32,400", "1,1,100,400", "8,400,32", output="8,100,32", constants=("8,100,32",))
    assert constant.multiply_adds == 2 * 8 * 100 * 400 * 32
    assert attention("8,32,400", "8,100,32", output="8,100,32").multiply_adds is None
    assert attention("-1,-1,64", "-1,64,-1", "-1,-1,64", output="-1,-1,64").multiply_adds is None


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
