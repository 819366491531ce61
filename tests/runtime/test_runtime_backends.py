"""What every backend must do, on the same tiny graphs; then what is particular to each."""

from __future__ import annotations

import builtins
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ebseg_deploy.contract import GraphSpec, TensorSpec
from ebseg_deploy.errors import BackendError
from ebseg_deploy.runtime.backends import BACKEND_NAMES, Backend, choose, open_backend
from ebseg_deploy.runtime.backends.fake import FakeBackend
from ebseg_deploy.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend, one_line
from onnx import TensorProto, helper

SPEC = GraphSpec(
    inputs=(
        TensorSpec(name="image", dtype="uint8", shape=(1, 2, 3)),
        TensorSpec(name="weights", dtype="float32", shape=("rows", 3)),
        TensorSpec(name="bias", dtype="float32", shape=("rows",)),
    ),
    outputs=(
        TensorSpec(name="scaled", dtype="float32", shape=("rows", 3)),
        TensorSpec(name="count", dtype="int32", shape=(1,)),
    ),
)
TYPES = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}


def write_graph(path: Path) -> Path:
    """scaled = weights + bias[:, None]; count = the pixels above zero."""
    axis = onnx.numpy_helper.from_array(np.array([1]), "axis")
    zero = onnx.numpy_helper.from_array(np.array(0, dtype=np.uint8), "zero")
    shape = onnx.numpy_helper.from_array(np.array([1]), "shape")
    nodes = [
        helper.make_node("Unsqueeze", ["bias", "axis"], ["column"]),
        helper.make_node("Add", ["weights", "column"], ["scaled"]),
        helper.make_node("Greater", ["image", "zero"], ["above"]),
        helper.make_node("Cast", ["above"], ["ones"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0),
        helper.make_node("Reshape", ["sum", "shape"], ["count"]),
    ]
    values = [
        [helper.make_tensor_value_info(t.name, TYPES[t.dtype], list(t.shape)) for t in side]
        for side in (SPEC.inputs, SPEC.outputs)
    ]
    graph = helper.make_graph(nodes, "tiny", *values, initializer=[axis, zero, shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def compute(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    count = np.array([(inputs["image"] > 0).sum()], dtype=np.int32)
    return {"scaled": inputs["weights"] + inputs["bias"][:, None], "count": count}


def inputs(rows: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 3, (1, 2, 3), dtype=np.uint8),
        "weights": random.normal(size=(rows, 3)).astype(np.float32),
        "bias": random.normal(size=rows).astype(np.float32),
    }


@pytest.fixture
def graph_file(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "tiny.onnx")


@pytest.fixture(params=["onnxruntime", "fake"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = FakeBackend({"tiny": compute}) if request.param == "fake" else open_backend(request.param, threads=1)
    with made:
        yield made


class TestContract:
    def test_run_gives_what_the_graph_computes(self, backend: Backend, graph_file: Path) -> None:
        graph = backend.open(graph_file, spec=SPEC)
        for rows in (1, 4):
            given = inputs(rows)
            found = backend.run(graph, given)
            assert found.keys() == {"scaled", "count"}
            for name, wanted in compute(given).items():
                assert found[name].dtype == wanted.dtype
                np.testing.assert_allclose(found[name], wanted, rtol=1e-6)

    def test_specs_name_the_dynamic_dimensions(self, backend: Backend, graph_file: Path) -> None:
        assert backend.specs(backend.open(graph_file, spec=SPEC)) == SPEC

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda given: given.pop("bias"), r"missing input bias; give exactly image, weights, bias"),
            (lambda given: given.update(extra=given["bias"]), r"unexpected input extra"),
            (lambda given: given.update(bias=given["bias"].astype(np.float64)), r"bias is float64, not float32"),
            (lambda given: given.update(bias=[1.0, 2.0]), r"bias is list, not float32"),
            (lambda given: given.update(image=given["image"][0]), r"image has shape \(2, 3\); give \(1, 2, 3\)"),
            (lambda given: given.update(weights=given["weights"].T), r"weights has shape \(3, 4\); give \(rows, 3\)"),
            (lambda given: given.update(bias=given["bias"][:2]), r"dimension rows is 4 in weights and 2 in bias"),
        ],
    )
    def test_wrong_inputs_are_refused_before_the_engine(
        self, backend: Backend, graph_file: Path, change: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        graph = backend.open(graph_file, spec=SPEC)
        given = inputs()
        change(given)
        with pytest.raises(BackendError, match=f"graph tiny: .*{message}") as caught:
            backend.run(graph, given)
        assert caught.value.cure

    def test_missing_file(self, backend: Backend, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match=r"graph head: no file .*missing\.onnx"):
            backend.open(tmp_path / "missing.onnx", spec=SPEC, name="head")

    def test_closed_graph_does_not_run(self, backend: Backend, graph_file: Path) -> None:
        first, second = backend.open(graph_file, spec=SPEC), backend.open(graph_file, spec=SPEC)
        backend.close(first)
        backend.close(first)
        with pytest.raises(BackendError, match="not open"):
            backend.run(first, inputs())
        assert backend.run(second, inputs())
        backend.close()
        with pytest.raises(BackendError, match="not open"):
            backend.specs(second)

    def test_another_backends_graph_does_not_run(self, backend: Backend, graph_file: Path) -> None:
        stranger = FakeBackend().open(graph_file, spec=SPEC)
        with pytest.raises(BackendError, match="not open"):
            backend.run(stranger, inputs())

    def test_threads_may_run_one_graph_at_once(self, backend: Backend, graph_file: Path) -> None:
        graph = backend.open(graph_file, spec=SPEC)
        barrier = threading.Barrier(4)

        def work(seed: int) -> None:
            barrier.wait(timeout=10)
            for i in range(20):
                given = inputs(seed=100 * seed + i)
                np.testing.assert_allclose(backend.run(graph, given)["scaled"], compute(given)["scaled"], rtol=1e-6)

        with ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(work, range(4)))) == 4


class TestOnnxRuntime:
    def test_border_of_another_graph_is_refused(self, graph_file: Path) -> None:
        backend = open_backend("onnxruntime")
        other = GraphSpec(inputs=SPEC.inputs[:2], outputs=SPEC.outputs)
        with pytest.raises(BackendError, match=r"tiny\.onnx has inputs image, weights, bias; the manifest says image"):
            backend.open(graph_file, spec=other)
        fixed = TensorSpec(name="bias", dtype="float32", shape=(4,))
        with pytest.raises(BackendError, match=r"bias float32 \(rows\) of tiny\.onnx is bias float32 \(4\)"):
            backend.open(graph_file, spec=GraphSpec(inputs=(*SPEC.inputs[:2], fixed), outputs=SPEC.outputs))

    def test_dynamic_lengths_may_have_other_names(self, graph_file: Path) -> None:
        renamed = TensorSpec(name="bias", dtype="float32", shape=("classes",))
        spec = GraphSpec(inputs=(*SPEC.inputs[:2], renamed), outputs=SPEC.outputs)
        assert open_backend("onnxruntime").open(graph_file, spec=spec).name == "tiny"

    def test_file_that_is_no_graph(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.onnx"
        path.write_bytes(b"not a graph")
        with pytest.raises(BackendError, match="onnxruntime refused") as caught:
            open_backend("onnxruntime").open(path)
        assert "\n" not in str(caught.value)

    def test_failure_inside_the_engine_is_one_line(self, tmp_path: Path) -> None:
        nodes = [helper.make_node("Add", ["a", "b"], ["c"])]
        output = helper.make_tensor_value_info("c", TensorProto.FLOAT, ["m"])
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [d]) for n, d in (("a", "n"), ("b", "m"))]
        graph = helper.make_graph(nodes, "add", values, [output])
        path = tmp_path / "add.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        backend = open_backend("onnxruntime")
        opened = backend.open(path)
        with pytest.raises(BackendError, match="graph add: onnxruntime failed") as caught:
            backend.run(opened, {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})
        assert "\n" not in str(caught.value)

    def test_missing_provider_names_the_line_to_install_it(self) -> None:
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime has the CUDA provider")
        with pytest.raises(BackendError, match=r"pip install 'ebseg-deploy\[gpu\]'"):
            open_backend("onnxruntime:cuda")

    @pytest.mark.filterwarnings("ignore:Specified provider")
    def test_provider_that_fails_to_load_is_not_replaced_silently(
        self, graph_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import onnxruntime

        backend = OnnxRuntimeBackend()
        monkeypatch.setattr(backend, "provider", "cuda")
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime has the CUDA provider")
        with pytest.raises(BackendError, match="CUDAExecutionProvider"):
            backend.open(graph_file)

    def test_onnxruntime_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def without(name: str, *rest: Any, **more: Any) -> Any:
            if name == "onnxruntime":
                raise ModuleNotFoundError("No module named 'onnxruntime'")
            return real(name, *rest, **more)

        monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(BackendError, match=r"No module named 'onnxruntime'; pip install 'ebseg-deploy\[cpu\]'"):
            open_backend("auto")

    def test_zero_threads(self) -> None:
        with pytest.raises(BackendError, match="0 threads"):
            open_backend("onnxruntime", threads=0)


class TestFake:
    def test_seeded_outputs_have_the_right_specs_and_repeat(self, graph_file: Path) -> None:
        results = []
        for seed in (0, 0, 1):
            backend = FakeBackend({"tiny": {"count": np.array([3], np.int32)}}, seed=seed)
            results.append(backend.run(backend.open(graph_file, spec=SPEC), inputs(rows=5)))
        first, again, other = results
        assert first["scaled"].shape == (5, 3)
        assert first["scaled"].dtype == np.float32
        assert first["count"] == [3]
        np.testing.assert_array_equal(first["scaled"], again["scaled"])
        assert not np.array_equal(first["scaled"], other["scaled"])

    def test_calls_are_kept(self, graph_file: Path) -> None:
        backend = FakeBackend()
        given = inputs()
        backend.run(backend.open(graph_file, spec=SPEC, name="head"), given)
        [(name, seen)] = backend.calls
        assert name == "head"
        assert seen["bias"] is given["bias"]

    def test_canned_output_of_another_shape_is_refused(self, graph_file: Path) -> None:
        backend = FakeBackend({"tiny": {"count": np.zeros((2, 2), np.int32)}})
        with pytest.raises(BackendError, match=r"output count has shape \(2, 2\); give \(1\)"):
            backend.run(backend.open(graph_file, spec=SPEC), inputs())

    def test_canned_output_of_another_dynamic_length_is_refused(self, graph_file: Path) -> None:
        backend = FakeBackend({"tiny": {"scaled": np.zeros((2, 3), np.float32)}})
        with pytest.raises(BackendError, match=r"dimension rows is 4 .* and 2 in scaled"):
            backend.run(backend.open(graph_file, spec=SPEC), inputs(rows=4))

    def test_dimension_that_no_input_has(self, graph_file: Path) -> None:
        odd = TensorSpec(name="boxes", dtype="float32", shape=("boxes",))
        backend = FakeBackend()
        graph = backend.open(graph_file, spec=GraphSpec(inputs=SPEC.inputs, outputs=(odd,)))
        with pytest.raises(BackendError, match="dimension boxes, which no input has"):
            backend.run(graph, inputs())

    def test_spec_is_needed(self, graph_file: Path) -> None:
        with pytest.raises(BackendError, match="reads no files; give `spec`"):
            FakeBackend().open(graph_file)


class TestChoice:
    @pytest.mark.parametrize("name", ["tensorflow", "onnxruntime:abacus", "fake:cuda", ""])
    def test_unknown_name_lists_the_known(self, name: str) -> None:
        with pytest.raises(BackendError, match=f"choose from {', '.join(BACKEND_NAMES)}"):
            open_backend(name)

    @pytest.mark.parametrize(
        ("providers", "gpu", "name", "reason"),
        [
            (["CPUExecutionProvider"], False, "onnxruntime", "no NVIDIA GPU was found"),
            (["CPUExecutionProvider"], True, "onnxruntime", "this ONNX Runtime has no CUDA provider"),
            (["CUDAExecutionProvider", "CPUExecutionProvider"], False, "onnxruntime", "no NVIDIA GPU was found"),
            (["CUDAExecutionProvider", "CPUExecutionProvider"], True, "onnxruntime:cuda", "has its CUDA provider"),
        ],
    )
    def test_auto_says_why(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        providers: list[str],
        gpu: bool,
        name: str,
        reason: str,
    ) -> None:
        import onnxruntime

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
        node = tmp_path / "nvidia0"
        if gpu:
            node.touch()
        monkeypatch.setattr(choose, "NVIDIA_DEVICE_NODES", (str(node),))
        backend = open_backend("auto")
        assert backend.name == name
        assert reason in backend.reason


def test_long_engine_messages_are_cut() -> None:
    text = one_line(RuntimeError("first\n  second " + "x" * 1000))
    assert text.startswith("first second xxx")
    assert len(text) == 301
