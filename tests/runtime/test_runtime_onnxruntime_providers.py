"""ONNX Runtime's GPU providers: IO binding, options, engine caches; on the CPU, and over a stand-in for a GPU build.

IO binding is the same code on a CPU. The stand-in says it has all providers, notes what a session is given, and
computes on the CPU what it is told to compute on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from ebseg_deploy import Segmenter
from ebseg_deploy.errors import BackendError
from ebseg_deploy.runtime.backends import ResidentTensor, onnxruntime_backend, open_backend
from ebseg_deploy.runtime.backends.fake import FakeBackend
from ebseg_deploy.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ebseg_deploy.runtime.backends.onnxruntime_providers import (
    FALL_BACKS,
    INSTALL,
    PROVIDERS,
    computes_in_tf32,
    engine_cache_folder,
    parse_provider,
    provider_options,
)
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.cache import cache_folder
from ebseg_deploy.runtime.gpu_host import GpuHost
from tiny_bundles import add_references

NAMES = ["cat", "road", "sky"]
HOST = GpuHost(engine="e", engine_version="1", gpu="GPU-1", compute_capability="8.6", driver="550.54, CUDA 12.4")


class TestIoBinding:
    @pytest.fixture
    def bound(self) -> Iterator[OnnxRuntimeBackend]:
        with OnnxRuntimeBackend(threads=1, io_binding=True) as backend:
            yield backend

    @pytest.mark.parametrize("overlap", [True, False])
    def test_the_same_labels_and_scores(
        self, tiny_bundle: Path, picture: Path, bound: OnnxRuntimeBackend, overlap: bool
    ) -> None:
        with Segmenter.load(tiny_bundle, "onnxruntime", threads=1) as segmenter:
            words = segmenter.vocabulary(NAMES, cache=False)
            wanted = segmenter(picture, words, scores=True)
        with Segmenter.load(tiny_bundle, bound, overlap=overlap) as segmenter:
            results = [segmenter(picture, words, scores=True) for _ in range(3)]
        for found in results:
            np.testing.assert_array_equal(found.labels, wanted.labels)
            np.testing.assert_array_equal(found.scores, wanted.scores)

    def test_nothing_between_the_graphs_comes_to_the_host(
        self, tiny_bundle: Path, picture: Path, bound: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: dict[str, dict[str, Any]] = {}
        made: dict[str, int] = {}
        run, fetch = bound.run_resident, bound._fetch_impl
        fetched: list[tuple[int, ...]] = []

        def note(graph: Any, inputs: Any) -> Any:
            given[graph.name] = dict(inputs)
            outputs = run(graph, inputs)
            made.update({name: tensor.value.data_ptr() for name, tensor in outputs.items()})
            return outputs

        def note_fetch(tensor: ResidentTensor) -> np.ndarray:
            fetched.append(tensor.shape)
            return fetch(tensor)

        with Segmenter.load(tiny_bundle, bound) as segmenter:
            words = segmenter.vocabulary(NAMES, cache=False)
            monkeypatch.setattr(bound, "run_resident", note)
            monkeypatch.setattr(bound, "_fetch_impl", note_fetch)
            segmenter(picture, words)
        decoder, head = given["adab_decoder"], given["open_vocab_head"]
        assert len(decoder) > 8
        for name, tensor in [*decoder.items(), *((name, head[name]) for name in head if name.startswith("embeddings"))]:
            assert isinstance(tensor, ResidentTensor), name
            assert tensor.value.data_ptr() == made[name], name
        assert fetched == [(1, 8, 16, 24), (1, 8, 3)], "mask logits and class probabilities, and nothing else"

    def test_inputs_are_checked_as_ever(self, tiny_bundle: Path, bound: OnnxRuntimeBackend) -> None:
        bundle = Bundle.open(tiny_bundle)
        record = bundle.graph("text_encoder")
        graph = bound.open(bundle.file(record.file), spec=record.spec, name="text_encoder")
        tokens = np.zeros((2, 9), np.int32)
        kept = bound.run_resident(graph, {"tokens": tokens})["prompt_embeddings"]
        assert (kept.shape, kept.dtype) == ((2, 16), np.float32)
        for wrong, message in (
            ({"tokens": tokens.astype(np.int64)}, "tokens is int64, not int32"),
            ({"tokens": kept}, "tokens is float32, not int32"),
            ({}, "missing input tokens"),
        ):
            with pytest.raises(BackendError, match=message):
                bound.run_resident(graph, wrong)
        bound.close(graph)
        with pytest.raises(BackendError, match="not open"):
            bound.run_resident(graph, {"tokens": tokens})

    def test_a_failure_inside_is_one_line(
        self, tiny_bundle: Path, bound: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = Bundle.open(tiny_bundle)
        record = bundle.graph("text_encoder")
        graph = bound.open(bundle.file(record.file), spec=record.spec, name="text_encoder")

        def fail(binding: object) -> None:
            raise RuntimeError("CUDA failure 2:\n out of memory")

        monkeypatch.setattr(graph.session, "run_with_iobinding", fail)
        with pytest.raises(BackendError, match="graph text_encoder: onnxruntime failed: CUDA failure 2: out of memory"):
            bound.run_resident(graph, {"tokens": np.zeros((1, 5), np.int32)})

    def test_another_backends_tensor_cannot_be_fetched(self) -> None:
        stray = ResidentTensor(dtype=np.dtype(np.float32), shape=(1,), value=object())
        with pytest.raises(BackendError, match="backend fake: a tensor of another backend"):
            FakeBackend().fetch({"x": stray})

    def test_host_arrays_pass_where_nothing_is_kept(self, tiny_bundle: Path) -> None:
        bundle = Bundle.open(tiny_bundle)
        record = bundle.graph("text_encoder")
        with open_backend("onnxruntime", threads=1) as backend:
            graph = backend.open(bundle.file(record.file), spec=record.spec, name="text_encoder")
            found = backend.run_resident(graph, {"tokens": np.zeros((2, 9), np.int32)})
            assert isinstance(found["prompt_embeddings"], np.ndarray)
            assert backend.fetch(found)["prompt_embeddings"] is found["prompt_embeddings"]


class GpuBuild:
    """The onnxruntime module of a GPU build, computing on the CPU.

    Attributes:
        sessions: providers and options of every session, in order.
        devices: where inputs were put and outputs bound to.
    """

    def __init__(self, providers: list[str]) -> None:
        self.__version__ = onnxruntime.__version__
        self.SessionOptions = onnxruntime.SessionOptions
        self.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel
        self.sessions: list[tuple[list[str], list[dict[str, str]]]] = []
        self.devices: set[tuple[str, int]] = set()
        self._providers = providers
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self._value)

    def get_available_providers(self) -> list[str]:
        return self._providers

    def _value(self, array: np.ndarray, device: str, index: int) -> Any:
        self.devices.add((device, index))
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu", 0)

    def InferenceSession(  # noqa: N802
        self, path: str, options: Any, *, providers: list[str], provider_options: list[dict[str, str]]
    ) -> Any:
        self.sessions.append((providers, provider_options))
        real = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        devices = self.devices

        class Binding:
            def __init__(self) -> None:
                self.real = real.io_binding()
                self.bind_ortvalue_input = self.real.bind_ortvalue_input
                self.get_outputs = self.real.get_outputs

            def bind_output(self, name: str, device: str, index: int) -> None:
                devices.add((device, index))
                self.real.bind_output(name, "cpu", 0)

        return SimpleNamespace(
            get_providers=lambda: providers,
            get_inputs=real.get_inputs,
            get_outputs=real.get_outputs,
            run=real.run,
            io_binding=Binding,
            run_with_iobinding=lambda binding: real.run_with_iobinding(binding.real),
        )


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> GpuBuild:
    build = GpuBuild(list(PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime_backend, "load_onnxruntime", lambda provider="cpu": build)
    monkeypatch.setattr(
        onnxruntime_backend,
        "find_gpu",
        lambda index, *, engine, engine_version: GpuHost(
            engine=engine, engine_version=engine_version, gpu=f"GPU-{index}", compute_capability="8.6", driver="550.54"
        ),
    )
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    return build


class TestGpuBuild:
    def test_a_picture_on_the_second_gpu(self, gpu_build: GpuBuild, tiny_bundle: Path, picture: Path) -> None:
        with Segmenter.load(tiny_bundle, "onnxruntime", threads=1) as segmenter:
            words = segmenter.vocabulary(NAMES, cache=False)
        with (
            Segmenter.load(tiny_bundle, "onnxruntime:cuda,device_id=1", threads=1, sentinel=False) as segmenter,
            open_backend("onnxruntime", threads=1) as plain,
        ):
            assert plain.gpu_host() is None
            host = segmenter.backend.gpu_host()
            assert host is not None
            assert (host.engine, host.gpu) == ("onnxruntime:cuda", "GPU-1")
            gpu_build.sessions.clear()
            segmenter(picture, words)
        assert gpu_build.devices == {("cuda", 1)}
        assert gpu_build.sessions == 4 * [
            (["CUDAExecutionProvider", "CPUExecutionProvider"], [{"use_tf32": "0", "device_id": "1"}, {}])
        ]

    def test_a_vocabulary_is_brought_to_the_gpu_once(
        self, gpu_build: GpuBuild, tiny_bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        brought: list[tuple[int, ...]] = []
        real = gpu_build.OrtValue.ortvalue_from_numpy

        def note(array: np.ndarray, device: str, index: int) -> Any:
            brought.append(array.shape)
            return real(array, device, index)

        with Segmenter.load(tiny_bundle, "onnxruntime", threads=1) as segmenter:
            first, second = (segmenter.vocabulary(names, cache=False) for names in (NAMES, NAMES[::-1]))
            wanted = [segmenter(picture, words).labels for words in (first, second)]
        monkeypatch.setattr(gpu_build.OrtValue, "ortvalue_from_numpy", note)
        words_shapes = [(len(NAMES) + 1, 16), (len(NAMES),)]
        with Segmenter.load(tiny_bundle, "onnxruntime:cuda", threads=1, sentinel=False) as segmenter:
            for which, moved in ((0, True), (0, False), (1, True), (0, True), (0, False)):
                brought.clear()
                found = segmenter(picture, (first, second)[which]).labels
                np.testing.assert_array_equal(found, wanted[which])
                assert [shape for shape in brought if shape in words_shapes] == (words_shapes if moved else [])

    def test_the_sentinel_looks_at_providers_too(
        self, gpu_build: GpuBuild, tiny_bundle_copy: Path, picture: Path
    ) -> None:
        bundle = add_references(tiny_bundle_copy)
        with Segmenter.load(bundle, "onnxruntime:cuda", threads=1) as segmenter:
            words = segmenter.vocabulary(NAMES, cache=False)
            segmenter(picture, words)
            run = segmenter.backend._run_resident_impl

            def wrong(graph: Any, inputs: Any) -> Any:
                return {
                    name: np.full_like(array, 0.5) if name == "sam_feature_3" else array
                    for name, array in segmenter.backend.fetch(run(graph, inputs)).items()
                }

            segmenter.backend._run_resident_impl = wrong
            segmenter.close()
            assert segmenter(picture, words).labels.size, "the pass is remembered"
        with Segmenter.load(bundle, "onnxruntime:cuda,use_tf32=1", threads=1) as segmenter:
            run = segmenter.backend._run_resident_impl
            segmenter.backend._run_resident_impl = wrong
            # TF32 is not what passed: the sentinel runs anew.
            with pytest.raises(BackendError, match=r"sentinel: sam_image_encoder fp32 gives wrong .*onnxruntime:cuda"):
                segmenter(picture, words)

    @pytest.mark.parametrize("provider", ["tensorrt", "nv-tensorrt-rtx"])
    def test_a_pass_holds_for_the_same_options_alone(
        self, gpu_build: GpuBuild, tiny_bundle_copy: Path, provider: str
    ) -> None:
        def passes(options: str) -> int:
            with Segmenter.load(bundle, f"onnxruntime:{provider}{options}", threads=1) as segmenter:
                segmenter.warm_up(bundle.sizes[0])
            return len(list(cache_folder("sentinels").iterdir()))

        bundle = Bundle.open(add_references(tiny_bundle_copy))
        half = ",trt_fp16_enable=1"
        assert [passes(options) for options in ("", "", half, half, "")] == [1, 1, 2, 2, 2]

    @pytest.mark.parametrize("own_folder", [True, False])
    def test_a_pass_holds_for_the_same_engines_alone(
        self,
        gpu_build: GpuBuild,
        tiny_bundle_copy: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        own_folder: bool,
    ) -> None:
        real, engines = gpu_build.InferenceSession, set[Path]()

        def session(*arguments: Any, provider_options: list[dict[str, str]], **more: Any) -> Any:
            made = real(*arguments, provider_options=provider_options, **more)
            run, engine = made.run_with_iobinding, Path(provider_options[0]["trt_engine_cache_path"]) / "one.engine"

            def run_and_keep(binding: Any) -> None:
                run(binding)
                engines.add(engine)
                if not engine.exists():  # with dynamic lengths, the provider builds in the first run
                    engine.write_bytes(b"an engine")

            made.run_with_iobinding = run_and_keep
            return made

        def passes() -> int:
            with Segmenter.load(bundle, f"onnxruntime:tensorrt{options}", threads=1) as segmenter:
                segmenter.warm_up(bundle.sizes[0])
            return len(list(cache_folder("sentinels").iterdir()))

        monkeypatch.setattr(gpu_build, "InferenceSession", session)
        bundle = Bundle.open(add_references(tiny_bundle_copy))
        options = ""
        if own_folder:
            (tmp_path / "own").mkdir()
            options = f",trt_engine_cache_enable=1,trt_engine_cache_path={tmp_path / 'own'}"
        assert [passes(), passes()] == [1, 1]
        one = min(engines)
        one.write_bytes(b"rebuilt")
        assert [passes(), passes()] == [2, 2]
        one.unlink()
        assert [passes(), passes()] == [3, 3]

    def test_names_encoded_unchecked_or_with_other_options_are_encoded_again(
        self, gpu_build: GpuBuild, tiny_bundle_copy: Path
    ) -> None:
        bundle = Bundle.open(add_references(tiny_bundle_copy))

        def encodes(backend: str, *, sentinel: bool) -> bool:
            gpu_build.sessions.clear()
            with Segmenter.load(bundle, backend, threads=1, sentinel=sentinel) as segmenter:
                segmenter.vocabulary(["cat"])
            return bool(gpu_build.sessions)

        for backend in ("onnxruntime:cuda", "onnxruntime:cuda,use_tf32=1"):
            for sentinel in (False, True):
                assert [encodes(backend, sentinel=sentinel) for _ in range(2)] == [True, False], (backend, sentinel)
        # A CPU has no sentinel: with or without, the names are the same.
        assert [encodes("onnxruntime:cpu", sentinel=sentinel) for sentinel in (False, True)] == [True, False]

    def test_names_that_could_not_be_checked_are_encoded_again(
        self, gpu_build: GpuBuild, tiny_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def encodes(bundle: Bundle) -> bool:
            gpu_build.sessions.clear()
            with Segmenter.load(bundle, "onnxruntime:cuda", threads=1) as segmenter:
                segmenter.vocabulary(["cat"])
            return bool(gpu_build.sessions)

        bundle = Bundle.open(tiny_bundle_copy)
        with pytest.warns(UserWarning, match="no references"):
            assert [encodes(bundle), encodes(bundle)] == [True, False]
        bundle = Bundle.open(add_references(tiny_bundle_copy))
        with monkeypatch.context() as engines_too_small:
            engines_too_small.setattr(OnnxRuntimeBackend, "takes", lambda *arguments: False)
            with pytest.warns(UserWarning, match="text_encoder goes unchecked"):
                assert [encodes(bundle), encodes(bundle)] == [True, True]
        assert [encodes(bundle), encodes(bundle)] == [True, False]

    def test_engines_of_the_tensorrt_provider_are_kept_for_a_bundles_graph(
        self, gpu_build: GpuBuild, tiny_bundle: Path
    ) -> None:
        bundle = Bundle.open(tiny_bundle)
        with open_backend("onnxruntime:tensorrt,trt_max_workspace_size=1073741824") as backend:
            for name in ("text_encoder", "open_vocab_head"):
                record = bundle.graph(name)
                backend.open(backend.graph_file(bundle, record), spec=record.spec, name=name)
            backend.open(Path(bundle.file(record.file)).resolve(), spec=record.spec, name="by hand")
        folders = []
        for providers, options in gpu_build.sessions[:2]:
            assert providers == [PROVIDERS[each] for each in ("tensorrt", "cuda", "cpu")]
            first = options[0]
            assert first["trt_engine_cache_enable"] == first["trt_timing_cache_enable"] == "1"
            assert first["trt_max_workspace_size"] == "1073741824"
            assert "trt_fp16_enable" not in first
            assert options[1:] == [{"use_tf32": "0"}, {}]
            folders.append(Path(first["trt_engine_cache_path"]))
        assert folders[0] != folders[1]
        assert all(folder.is_dir() for folder in folders)

    def test_a_graph_without_a_bundle_keeps_no_engines(self, gpu_build: GpuBuild, tiny_bundle: Path) -> None:
        record = Bundle.open(tiny_bundle).graph("text_encoder")
        with open_backend("onnxruntime:tensorrt") as backend:
            backend.open(tiny_bundle / record.file, spec=record.spec)
        assert gpu_build.sessions[0][1][0] == {"trt_engine_cache_enable": "0"}

    @pytest.mark.parametrize("provider", ["cuda", "tensorrt", "nv-tensorrt-rtx"])
    def test_a_build_without_the_provider_names_the_line(self, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
        monkeypatch.setattr(
            onnxruntime_backend, "load_onnxruntime", lambda provider="cpu": GpuBuild(["CPUExecutionProvider"])
        )
        with pytest.raises(BackendError) as caught:
            open_backend(f"onnxruntime:{provider}")
        assert "has CPUExecutionProvider only" in str(caught.value)
        assert str(caught.value).endswith(INSTALL[provider])

    def test_without_cuda_beside_it_tensorrt_falls_back_to_the_cpu(
        self, gpu_build: GpuBuild, tiny_bundle: Path
    ) -> None:
        gpu_build._providers = ["TensorrtExecutionProvider", "CPUExecutionProvider"]
        record = Bundle.open(tiny_bundle).graph("text_encoder")
        with open_backend("onnxruntime:tensorrt") as backend:
            backend.open(tiny_bundle / record.file, spec=record.spec)
        providers, options = gpu_build.sessions[0]
        assert providers == ["TensorrtExecutionProvider", "CPUExecutionProvider"]
        assert len(options) == 2


class TestOptions:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("", ("", {})),
            ("cuda", ("cuda", {})),
            ("cuda,device_id=1", ("cuda", {"device_id": "1"})),
            (
                "tensorrt, trt_profile_min_shapes=seen:1 ,device_id=0",
                ("tensorrt", {"trt_profile_min_shapes": "seen:1", "device_id": "0"}),
            ),
            ("cuda,a=b=c", ("cuda", {"a": "b=c"})),
        ],
    )
    def test_in_the_backends_name(self, text: str, wanted: tuple[str, dict[str, str]]) -> None:
        assert parse_provider(text) == wanted

    @pytest.mark.parametrize("text", ["cuda,device_id", "cuda,=1", "cuda,a=", "cuda,", "cuda,a=1,a=2"])
    def test_that_are_none(self, text: str) -> None:
        with pytest.raises(
            BackendError, match=r"is no NAME=VALUE, or comes twice; write as onnxruntime:cuda,device_id"
        ):
            parse_provider(text)

    def test_the_users_hold(self) -> None:
        first, *rest = provider_options("cuda", {"use_tf32": "1", "device_id": "2"}, engine_cache=None)
        assert first == {"use_tf32": "1", "device_id": "2"}
        assert rest == [{}]
        first, cuda, cpu = provider_options("tensorrt", {"device_id": "2", "x": "1"}, engine_cache=Path("/c"))
        assert first["trt_engine_cache_path"] == str(Path("/c"))
        assert (first["x"], first["device_id"]) == ("1", "2")
        assert cuda == {"use_tf32": "0", "device_id": "2"}
        assert cpu == {}
        assert provider_options("nv-tensorrt-rtx", {}, engine_cache=Path("/c"))[0] == {
            "nv_runtime_cache_path": str(Path("/c"))
        }
        assert provider_options("cpu", {}, engine_cache=None) == [{}]

    def test_every_provider_falls_back_to_the_cpu(self) -> None:
        assert FALL_BACKS.keys() == PROVIDERS.keys() == INSTALL.keys()
        for provider, order in FALL_BACKS.items():
            assert order[0] == provider
            assert order[-1] == "cpu"

    def test_tf32(self) -> None:
        assert not computes_in_tf32("cpu", {})
        assert not computes_in_tf32("cuda", {})
        assert computes_in_tf32("cuda", {"use_tf32": "1"})
        assert computes_in_tf32("tensorrt", {})

    def test_engines_of_other_weights_gpus_or_options_lie_elsewhere(self) -> None:
        from dataclasses import replace

        folders = {
            engine_cache_folder("a", HOST, {}),
            engine_cache_folder("b", HOST, {}),
            engine_cache_folder("a", replace(HOST, gpu="GPU-2"), {}),
            engine_cache_folder("a", replace(HOST, engine_version="2"), {}),
            engine_cache_folder("a", replace(HOST, driver="560.28, CUDA 12.6"), {}),
            engine_cache_folder("a", HOST, {"trt_builder_optimization_level": "5"}),
        }
        assert len(folders) == 6
        assert engine_cache_folder("a", HOST, {"a": "1", "b": "2"}) == engine_cache_folder(
            "a", HOST, {"b": "2", "a": "1"}
        )

    def test_a_device_that_is_no_number(self) -> None:
        with pytest.raises(BackendError, match="device_id 'first'; give a GPU's number"):
            OnnxRuntimeBackend(options={"device_id": "first"})
