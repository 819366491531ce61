"""TensorRtBackend: the numbers, the check before the deserialiser, and what it says when something does not fit."""

from __future__ import annotations

import builtins
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from ebseg_deploy.contract import GRAPH_NAMES, GraphName
from ebseg_deploy.errors import BackendError
from ebseg_deploy.runtime.backends import OpenGraph, open_backend, tensorrt_backend
from ebseg_deploy.runtime.backends.tensorrt_backend import TensorRtBackend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.device import RecordingDevice
from ebseg_deploy.runtime.engine_file import read_sidecar, sidecar_path
from fake_tensorrt import DataType, FakeTensorRt, TensorLocation, write_engines


def make(device: RecordingDevice, **options: Any) -> tuple[TensorRtBackend, FakeTensorRt]:
    trt = FakeTensorRt(device, **options)
    return TensorRtBackend("tensorrt-rtx", device=device, module=trt), trt


def open_graph(backend: TensorRtBackend, bundle: Bundle, name: GraphName) -> OpenGraph:
    record = bundle.graph(name, bundle.sizes[0])
    return backend.open(backend.graph_file(bundle, record), spec=record.spec, name=name)


def inputs_of(bundle: Bundle, name: GraphName, seed: int = 0, **lengths: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    given = {}
    for tensor in bundle.graph(name, bundle.sizes[0]).spec.inputs:
        shape = tuple(lengths[each] if isinstance(each, str) else each for each in tensor.shape)
        values = random.integers(0, 60, shape) if tensor.dtype in ("uint8", "int32") else random.normal(size=shape)
        given[tensor.name] = values.astype(tensor.dtype)
    return given


LENGTHS = {"classes": 3, "classes_and_background": 4, "prompts": 5, "tokens": 9}


class TestNumbers:
    @pytest.mark.parametrize("name", GRAPH_NAMES)
    def test_each_graph_gives_what_onnxruntime_gives(
        self, engine_bundle: Path, device: RecordingDevice, name: GraphName
    ) -> None:
        bundle = Bundle.open(engine_bundle)
        backend, _ = make(device)
        reference = open_backend("onnxruntime", threads=1)
        with backend, reference:
            graph = open_graph(backend, bundle, name)
            wanted = reference.open(bundle.file(bundle.graph(name, bundle.sizes[0]).file), name=name)
            assert backend.specs(graph) == bundle.graph(name, bundle.sizes[0]).spec
            for seed, change in ((0, {}), (1, {"prompts": 2, "tokens": 5}), (2, {"prompts": 112, "tokens": 77})):
                given = inputs_of(bundle, name, seed, **{**LENGTHS, **change})
                found = backend.run(graph, given)
                for output, array in reference.run(wanted, given).items():
                    np.testing.assert_allclose(found[output], array, atol=1e-5)

    def test_threads_run_one_graph_at_once(self, engine_bundle: Path, device: RecordingDevice) -> None:
        bundle = Bundle.open(engine_bundle)
        backend, trt = make(device)
        graph = open_graph(backend, bundle, "text_encoder")
        barrier = threading.Barrier(3)
        wanted = [backend.run(graph, inputs_of(bundle, "text_encoder", seed, **LENGTHS)) for seed in range(3)]

        def work(seed: int) -> None:
            barrier.wait(timeout=10)
            for _ in range(10):
                found = backend.run(graph, inputs_of(bundle, "text_encoder", seed, **LENGTHS))
                np.testing.assert_array_equal(found["prompt_embeddings"], wanted[seed]["prompt_embeddings"])

        with ThreadPoolExecutor(3) as pool:
            assert len(list(pool.map(work, range(3)))) == 3
        assert trt.live_contexts <= 3
        backend.close()
        assert trt.live_contexts == 0


class TestChecks:
    def test_a_changed_plan_never_reaches_the_deserialiser(
        self, engine_bundle_copy: Path, device: RecordingDevice
    ) -> None:
        bundle = Bundle.open(engine_bundle_copy)
        backend, trt = make(device)
        plan = backend.graph_file(bundle, bundle.graph("open_vocab_head"))
        content = bytearray(plan.read_bytes())
        content[-1] ^= 1
        plan.write_bytes(content)
        with pytest.raises(BackendError, match=r"sha256.*do not load it; rebuild it: ebseg build"):
            open_graph(backend, bundle, "open_vocab_head")
        sidecar_path(plan).unlink()
        with pytest.raises(BackendError, match=r"its sidecar .* is missing"):
            open_graph(backend, bundle, "open_vocab_head")
        assert trt.plans == 0

    @pytest.mark.parametrize(
        ("capability", "version", "message"),
        [
            ("12.0", "1.7.1.116", r"compute capability 12\.0, this GPU has 8\.9.*--compute-capability 8\.9"),
            ("8.9", "1.5.0.1", r"TensorRT 1\.5\.0\.1, this is 1\.7\.1\.116"),
        ],
    )
    def test_an_engine_of_another_machine_names_the_command(
        self, tiny_bundle_copy: Path, device: RecordingDevice, capability: str, version: str, message: str
    ) -> None:
        backend, trt = make(device)
        bundle = Bundle.open(write_engines(tiny_bundle_copy, capability=capability, version=version))
        with pytest.raises(BackendError, match=message):
            open_graph(backend, bundle, "text_encoder")
        assert trt.plans == 0

    def test_an_engine_of_another_graph(self, engine_bundle_copy: Path, device: RecordingDevice) -> None:
        backend, trt = make(device)
        bundle = Bundle.open(engine_bundle_copy)
        head = backend.graph_file(bundle, bundle.graph("open_vocab_head"))
        text = backend.graph_file(bundle, bundle.graph("text_encoder"))
        for path in (head, sidecar_path(head)):
            shutil.copy(path, path.with_name(path.name.replace("open_vocab_head", "text_encoder")))
        assert text.read_bytes() == head.read_bytes()
        with pytest.raises(BackendError, match="it is open_vocab_head fp32, not text_encoder fp32"):
            open_graph(backend, bundle, "text_encoder")
        assert trt.plans == 0

    def test_an_engine_of_another_export(self, engine_bundle_copy: Path, device: RecordingDevice) -> None:
        backend, trt = make(device)
        bundle = Bundle.open(engine_bundle_copy)
        plan = backend.graph_file(bundle, bundle.graph("text_encoder"))
        sidecar = read_sidecar(plan)
        older = msgspec.structs.replace(sidecar, source=dict.fromkeys(sidecar.source, "0" * 64))
        sidecar_path(plan).write_bytes(msgspec.json.encode(older))
        with pytest.raises(BackendError, match=r"graphs/fp32/text_encoder\.onnx is not what it was built from"):
            open_graph(backend, bundle, "text_encoder")
        assert trt.plans == 0

    def test_not_built(self, tiny_bundle: Path, device: RecordingDevice) -> None:
        backend, _ = make(device)
        bundle = Bundle.open(tiny_bundle)
        with pytest.raises(BackendError, match=r"no engine .*; ebseg build .* --target tensorrt-rtx --precision fp32"):
            backend.graph_file(bundle, bundle.graph("text_encoder"))

    def test_engines_elsewhere(self, engine_bundle: Path, tiny_bundle: Path, device: RecordingDevice) -> None:
        folder = engine_bundle / "engines" / "tensorrt-rtx" / "fp32"
        with TensorRtBackend("tensorrt-rtx", device=device, module=FakeTensorRt(device), engines=folder) as backend:
            assert open_graph(backend, Bundle.open(tiny_bundle), "text_encoder").file.is_relative_to(folder)

    def test_engines_elsewhere_by_name(
        self, tmp_path: Path, tiny_bundle: Path, device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tensorrt_backend, "CudaPythonDevice", lambda: device)
        monkeypatch.setattr(tensorrt_backend, "load_tensorrt", lambda target: FakeTensorRt(device))
        bundle = Bundle.open(tiny_bundle)
        backend = open_backend(f"tensorrt-rtx:{tmp_path / 'elsewhere'}")
        with pytest.raises(BackendError, match=r"no engine .*elsewhere.text_encoder\.plan; ebseg build .*"):
            backend.graph_file(bundle, bundle.graph("text_encoder"))

    def test_an_onnx_file(self, tiny_bundle: Path, device: RecordingDevice) -> None:
        backend, _ = make(device)
        bundle = Bundle.open(tiny_bundle)
        with pytest.raises(BackendError, match=r"text_encoder\.onnx is no engine; build one with `ebseg build`"):
            backend.open(bundle.file(bundle.graph("text_encoder").file))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"refuse": True}, r"engine text_encoder: TensorRT refused the engine: stdArchiveReader.h: magic tag"),
            ({"changes": {"dtype": DataType.INT64}}, "tensor tokens is INT64"),
            ({"changes": {"location": TensorLocation.HOST}}, "tensor tokens is wanted on the host"),
        ],
    )
    def test_engines_that_cannot_be_used(
        self, engine_bundle: Path, device: RecordingDevice, options: dict[str, Any], message: str
    ) -> None:
        backend, _ = make(device, **options)
        with pytest.raises(BackendError, match=message) as caught:
            open_graph(backend, Bundle.open(engine_bundle), "text_encoder")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("vague", "shape of prompt_embeddings does not follow"),
            ("inconsistent", "no shapes follow from .*: Error in inferring shapes"),
        ],
    )
    def test_output_shapes_that_do_not_follow(
        self, engine_bundle: Path, device: RecordingDevice, change: str, message: str
    ) -> None:
        bundle = Bundle.open(engine_bundle)
        backend, _ = make(device, changes={change: True})
        graph = open_graph(backend, bundle, "text_encoder")
        with pytest.raises(BackendError, match=message):
            backend.run(graph, inputs_of(bundle, "text_encoder", **LENGTHS))

    @pytest.mark.parametrize(
        ("lengths", "message"),
        [
            ({"prompts": 113}, r"tokens has prompts = 113, built for 1 to 112.*--prompts 1:113:113"),
            ({"tokens": 1}, r"tokens has tokens = 1, built for 2 to 77.*--tokens 1:1:77"),
        ],
    )
    def test_lengths_outside_the_profile(
        self, engine_bundle: Path, device: RecordingDevice, lengths: dict[str, int], message: str
    ) -> None:
        bundle = Bundle.open(engine_bundle)
        backend, _ = make(device)
        with backend:
            graph = open_graph(backend, bundle, "text_encoder")
            with pytest.raises(BackendError, match=message):
                backend.run(graph, inputs_of(bundle, "text_encoder", **{**LENGTHS, **lengths}))

    def test_a_failed_run_leaves_nothing_and_the_next_works(self, engine_bundle: Path, device: RecordingDevice) -> None:
        bundle = Bundle.open(engine_bundle)
        backend, trt = make(device, fail_after=0)
        with backend:
            graph = open_graph(backend, bundle, "text_encoder")
            with pytest.raises(BackendError, match="could not be started"):
                backend.run(graph, inputs_of(bundle, "text_encoder", **LENGTHS))
            device.check_released()
            trt.fail_after = None
            assert backend.run(graph, inputs_of(bundle, "text_encoder", **LENGTHS))

    @pytest.mark.parametrize(("name", "line"), [("tensorrt", "tensorrt-cu12"), ("tensorrt-rtx", "tensorrt-rtx-cu12")])
    def test_tensorrt_not_installed(self, monkeypatch: pytest.MonkeyPatch, name: str, line: str) -> None:
        module = name.replace("-", "_")
        monkeypatch.setitem(sys.modules, module, None)  # makes the import fail
        with pytest.raises(BackendError, match=f"backend {name}: .*; pip install {line}"):
            open_backend(name)

    def test_cuda_python_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ebseg_deploy.runtime.device.cuda_python import CudaPythonDevice

        real = builtins.__import__

        def without(name: str, *rest: Any, **more: Any) -> Any:
            if name.split(".")[0] == "cuda":
                raise ModuleNotFoundError("No module named 'cuda'")
            return real(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", without)
        for module in [each for each in sys.modules if each.split(".")[0] == "cuda"]:
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(BackendError, match=r"cuda-python: .*; pip install cuda-python"):
            CudaPythonDevice()
