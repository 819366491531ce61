"""Graphs of a few nodes whose activations numpy can compute, and feeds for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 6


def weights(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two square matrices."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(2, WIDTH, WIDTH)).astype(np.float32))


def two_products(*, dtype: int = TensorProto.FLOAT, seed: int = 0, rows: int | str = 4) -> onnx.ModelProto:
    """x (rows, 6) → linear/MatMul → hidden → relu/Relu → active → head/MatMul → y; also `length`, int64."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    first, second = (each.astype(kind) for each in weights(seed))
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["hidden"], name="linear/MatMul"),
        helper.make_node("Relu", ["hidden"], ["active"], name="relu/Relu"),
        helper.make_node("MatMul", ["active", "w2"], ["y"], name="head/MatMul"),
        helper.make_node("Shape", ["active"], ["length"], name="shape"),
    ]
    graph = helper.make_graph(
        nodes,
        "two_products",
        [helper.make_tensor_value_info("x", dtype, [rows, WIDTH])],
        [
            helper.make_tensor_value_info("y", dtype, [rows, WIDTH]),
            helper.make_tensor_value_info("length", TensorProto.INT64, [2]),
        ],
        initializer=[numpy_helper.from_array(first, "w1"), numpy_helper.from_array(second, "w2")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def expected(x: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """What numpy gives for the activations."""
    first, second = weights(seed)
    hidden = x @ first
    active = np.maximum(hidden, 0)
    return {"x": x, "hidden": hidden, "active": active, "y": active @ second}


def saved(model: onnx.ModelProto, path: Path, *, external: bool = False) -> Path:
    """The model as a file, its weights beside it if `external`."""
    onnx.save(
        model,
        path,
        save_as_external_data=external,
        location=f"{path.stem}.weights" if external else None,
        size_threshold=0,
    )
    return path


class ArrayFeeds:
    """One array after the other, as input x."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = list(arrays)
        self.asked: list[int] = []

    @property
    def identity(self) -> str:
        return hashlib.sha256(b"".join(array.tobytes() for array in self.arrays)).hexdigest()

    def __len__(self) -> int:
        return len(self.arrays)

    def label(self, index: int) -> str:
        return f"array {index}"

    def feed(self, index: int) -> dict[str, np.ndarray]:
        self.asked.append(index)
        return {"x": self.arrays[index]}
