"""Graphs with every kind of product, and their ranges."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from ebseg_deploy.calibration.ranges import Range
from onnx import TensorProto, helper, numpy_helper

HEADS, TOKENS, WIDTH = 2, 9, 8
HEIGHT = WIDE = 3
CODES = HEIGHT + WIDE


def attention_graph(seed: int = 0) -> onnx.ModelProto:
    """One block as in SAM, over a 3x3 grid: x (1, 9, 8) -> linear -> scores with riding positions -> mix -> linear.

    Also a 3-channel patch convolution and a batched table, which recipes leave alone; y (1, 9, 8) is the output.
    """
    rng = np.random.default_rng(seed)
    inner = WIDTH // HEADS

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.normal(size=shape)).astype(np.float32)

    codes = np.concatenate([np.repeat(np.eye(HEIGHT), WIDE, 1), np.tile(np.eye(WIDE), (1, HEIGHT))])
    weights = {
        "patch.weight": normal(WIDTH, 3, 1, 1),
        "qkv.weight": normal(WIDTH, 3 * WIDTH, scale=0.5),
        "qkv.bias": normal(3 * WIDTH),
        "table": normal(HEADS, inner, CODES),
        "codes": np.broadcast_to(codes, (HEADS, CODES, TOKENS)).astype(np.float32),
        "proj.weight": normal(WIDTH, WIDTH),
        "proj.bias": normal(WIDTH),
        "root": np.array(0.5, np.float32),
        "tokens": np.array([TOKENS, WIDTH], np.int64),
        "heads": np.array([TOKENS, 3 * HEADS, inner], np.int64),
        "merged": np.array([1, TOKENS, WIDTH], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "patch.weight"], ["patches"], name="patch_embed.proj/Conv"),
        node("Transpose", ["patches"], ["moved"], name="patch_embed/Transpose", perm=[0, 2, 3, 1]),
        node("Reshape", ["moved", "tokens"], ["x"], name="patch_embed/Reshape"),
        node("MatMul", ["x", "qkv.weight"], ["product"], name="blocks.0.attn.qkv/MatMul"),
        node("Add", ["product", "qkv.bias"], ["qkv"], name="blocks.0.attn.qkv/Add"),
        node("Reshape", ["qkv", "heads"], ["by_head"], name="attentions.0/Reshape"),
        node("Transpose", ["by_head"], ["heads_first"], name="attentions.0/Transpose", perm=[1, 0, 2]),
        node("Split", ["heads_first"], ["q", "k", "v"], name="attentions.0/Split", axis=0, num_outputs=3),
        node("MatMul", ["q", "table"], ["positions"], name="attentions.0/MatMul"),
        node("Mul", ["q", "root"], ["scaled"], name="attentions.0/Mul"),
        node("Concat", ["scaled", "positions"], ["q_and_positions"], name="attentions.0/Concat", axis=2),
        node("Transpose", ["k"], ["k_across"], name="attentions.0/Transpose_2", perm=[0, 2, 1]),
        node("Concat", ["k_across", "codes"], ["k_and_codes"], name="attentions.0/Concat_2", axis=1),
        node("MatMul", ["q_and_positions", "k_and_codes"], ["scores"], name="attentions.0/MatMul_3"),
        node("Softmax", ["scores"], ["weights"], name="attentions.0/Softmax", axis=-1),
        node("MatMul", ["weights", "v"], ["mixed"], name="attentions.0/MatMul_4"),
        node("Transpose", ["mixed"], ["tokens_first"], name="attentions.0/Transpose_3", perm=[1, 0, 2]),
        node("Reshape", ["tokens_first", "merged"], ["gathered"], name="attentions.0/Reshape_2"),
        node("MatMul", ["gathered", "proj.weight"], ["projected"], name="blocks.0.attn.proj/MatMul"),
        node("Add", ["projected", "proj.bias"], ["y"], name="blocks.0.attn.proj/Add"),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, HEIGHT, WIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, TOKENS, WIDTH])],
        initializer=[numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def windowed_graph(*, padding: float = 0.0) -> onnx.ModelProto:
    """A linear layer whose result is padded and cut into windows, as SAM's qkv: x (1, 3, 3, 8) -> y (4, 2, 2, 24)."""
    rng = np.random.default_rng(2)
    weights = {
        "weight": rng.normal(size=(WIDTH, 3 * WIDTH)).astype(np.float32),
        "bias": rng.normal(size=3 * WIDTH).astype(np.float32),
        "pads": np.array([0, 0, 0, 0, 0, 1, 1, 0], np.int64),
        "padding": np.array(padding, np.float32),
        "rows": np.array([1, 2, 2, 2, 2, 3 * WIDTH], np.int64),
        "windows": np.array([4, 2, 2, 3 * WIDTH], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Relu", ["x"], ["active"], name="Relu"),
        node("MatMul", ["active", "weight"], ["product"], name="qkv/MatMul"),
        node("Pad", ["product", "pads", "padding"], ["padded"], name="Pad"),
        node("Reshape", ["padded", "rows"], ["by_rows"], name="Reshape"),
        node("Transpose", ["by_rows"], ["turned"], name="Transpose", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", ["turned", "windows"], ["cut"], name="Reshape_2"),
        node("Add", ["cut", "bias"], ["y"], name="Add"),
    ]
    graph = helper.make_graph(
        nodes,
        "windowed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 3, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 2, 2, 3 * WIDTH])],
        initializer=[numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def image(seed: int = 1) -> dict[str, np.ndarray]:
    """An input of `attention_graph`."""
    return {"image": np.random.default_rng(seed).normal(size=(1, 3, HEIGHT, WIDE)).astype(np.float32)}


def run(model: onnx.ModelProto | ir.Model, feed: dict[str, np.ndarray], *outputs: str) -> list[np.ndarray]:
    """Outputs, or inner tensors by name, in ONNX Runtime, products computed on rounded floats."""
    import onnxruntime

    proto = ir.to_proto(model) if isinstance(model, ir.Model) else onnx.ModelProto.FromString(model.SerializeToString())
    if outputs:
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, feed)
    return found


def ranges_of(model: onnx.ModelProto, names: list[str]) -> dict[str, Range]:
    """What those tensors reach on a few inputs."""
    found: dict[str, float] = {}
    for seed in range(4):
        for name, values in zip(names, run(model, image(seed), *names), strict=True):
            found[name] = max(found.get(name, 0.0), float(np.abs(values).max()))
    return {name: Range(low=-amax, high=amax) for name, amax in found.items()}
