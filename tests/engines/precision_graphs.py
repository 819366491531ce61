"""Graphs of another precision, made from tiny FP32 ones: enough for the builder to see types, nothing for accuracy."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from ebseg_deploy.contract import MANIFEST_NAME, BundleManifest
from onnx import TensorProto, helper, numpy_helper
from tiny_bundles import seal


def in_type(model: onnx.ModelProto, type_: int) -> onnx.ModelProto:
    """Compute in FLOAT16 or BFLOAT16, behind casts at the border, which stays FP32."""
    graph = model.graph
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(weight)
            if type_ == TensorProto.FLOAT16:
                weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), weight.name))
            else:
                weight.CopyFrom(helper.make_tensor(weight.name, type_, values.shape, values.ravel().tolist()))
    inputs = [value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    outputs = [value.name for value in graph.output]
    inner = {name: f"{name}_inner" for name in (*inputs, *outputs)}
    nodes = [helper.make_node("Cast", [name], [inner[name]], to=type_) for name in inputs]
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = inner.get(name, name)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = type_
        # Scales of Resize are FP32 whatever it resizes.
        if node.op_type == "Resize":
            scales = next(weight for weight in graph.initializer if weight.name == node.input[2])
            scales.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scales).astype(np.float32), scales.name))
        nodes.append(node)
    nodes += [helper.make_node("Cast", [inner[name]], [name], to=TensorProto.FLOAT) for name in outputs]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.value_info[:]
    made.graph.node.extend(nodes)
    return made


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every convolution between Q/DQ pairs: symmetric, zero point 0."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    weights = {weight.name: weight for weight in made.graph.initializer}

    def constant(name: str, values: np.ndarray) -> str:
        made.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    scale = constant("q_scale", np.float32(1 / 64))
    zero = constant("q_zero", np.int8(0))
    nodes = []
    for i, node in enumerate(model.graph.node):
        node = onnx.NodeProto.FromString(node.SerializeToString())
        if node.op_type == "Conv":
            nodes.append(helper.make_node("QuantizeLinear", [node.input[0], scale, zero], [f"q{i}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", scale, zero], [f"dq{i}"]))
            whole = np.clip(np.rint(numpy_helper.to_array(weights[node.input[1]]) * 64), -127, 127).astype(np.int8)
            nodes.append(helper.make_node("DequantizeLinear", [constant(f"w{i}", whole), scale, zero], [f"wdq{i}"]))
            node.input[0], node.input[1] = f"dq{i}", f"wdq{i}"
        nodes.append(node)
    made.graph.node.extend(nodes)
    return made


def convert(bundle: Path, precision: str) -> Path:
    """Make a tiny bundle's graphs of one precision what they are labelled, and seal it again."""
    manifest = msgspec.json.decode((bundle / MANIFEST_NAME).read_bytes(), type=BundleManifest)
    for record in manifest.graphs:
        if record.precision != precision or record.name == "open_vocab_head":  # an island: it stays FP32
            continue
        model = onnx.load(bundle / record.file)
        if precision == "int8" and record.name.endswith("image_encoder"):
            model = quantised(model)
        else:
            model = in_type(model, TensorProto.BFLOAT16 if precision == "bf16" else TensorProto.FLOAT16)
        onnx.save(model, bundle / record.file)
    return seal(bundle, manifest)
