"""The sentinel: wrong numbers on a GPU are refused, a pass is remembered, and what a pass depends on counts.

The GPU is the fake backend's word for it; the graphs run in ONNX Runtime, with a fault planted where a test wants it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from ebseg_deploy import Segmenter
from ebseg_deploy.cli import ebseg
from ebseg_deploy.contract import GRAPH_NAMES, ComputeRecord, GraphName, Size
from ebseg_deploy.errors import BackendError, EbsegError
from ebseg_deploy.runtime.backends import open_backend
from ebseg_deploy.runtime.backends.fake import FakeBackend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.cache import cache_folder
from ebseg_deploy.runtime.gpu_host import GpuHost
from ebseg_deploy.runtime.known_bad import KNOWN_BAD, known_faults
from ebseg_deploy.runtime.verify import tolerance
from tiny_bundles import add_references, write_tiny_bundle

SIZE = Size(height=64, width=64)
HOST = GpuHost(
    engine="tensorrt",
    engine_version="10.9.0.34",
    gpu="GPU-6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    compute_capability="8.6",
    driver="550.54.14, CUDA 12.4",
)
Fault = Callable[[np.ndarray], np.ndarray]
GPU_GRAPHS = list(GRAPH_NAMES[:4])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with references."""
    return add_references(write_tiny_bundle(tmp_path_factory.mktemp("sentinel") / "b.ebseg", sizes=(SIZE,)))


@pytest.fixture(autouse=True)
def passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where passes are remembered: a folder of this test's own."""
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    return cache_folder("sentinels")


def gpu(bundle: Path, host: GpuHost | None = HOST, **faults: Fault) -> FakeBackend:
    """A backend that computes the bundle's graphs, with a fault in each output that is named."""
    opened, engine = Bundle.open(bundle), open_backend("onnxruntime", threads=1)
    graphs: dict[GraphName, Any] = {}

    def compute(name: GraphName) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if name not in graphs:
                graphs[name] = engine.open(opened.file(opened.graph(name, SIZE).file), name=name)
            found = engine.run(graphs[name], inputs)
            return {output: faults.get(output, lambda array: array)(array) for output, array in found.items()}

        return run

    return FakeBackend({name: compute(name) for name in GRAPH_NAMES}, host=host)


def ran(backend: FakeBackend) -> list[str]:
    return [name for name, _ in backend.calls]


def shifted(array: np.ndarray) -> np.ndarray:
    return np.roll(array, 1, axis=-1)


class TestRefusal:
    @pytest.mark.parametrize(
        ("output", "fault", "graph"),
        [
            ("sam_feature_2", shifted, "sam_image_encoder"),
            ("clip_dense", lambda array: array * np.float32(1.01), "clip_image_encoder"),
            ("mask_logits", lambda array: np.full_like(array, np.nan), "adab_decoder"),
            ("class_probabilities", lambda array: np.full_like(array, 1 / 7), "open_vocab_head"),
        ],
    )
    def test_wrong_numbers_are_refused_and_the_graph_is_named(
        self, bundle: Path, picture: Path, passes: Path, output: str, fault: Fault, graph: str
    ) -> None:
        with Segmenter.load(bundle, gpu(bundle, **{output: fault})) as segmenter:
            for _ in range(2):  # the second picture gets no answer either
                with pytest.raises(BackendError) as caught:
                    segmenter(picture, ["cat", "road"])
        text = str(caught.value)
        assert f"sentinel: {graph} fp32 gives wrong numbers on tensorrt 10.9.0.34" in text
        assert f"{output} is " in text
        assert "off the bundle's reference, " in text
        assert "ebseg verify" in text
        assert "--no-sentinel" in text
        assert "\n" not in text
        assert not any(f"plan of {graph}" in file.read_text() for file in passes.glob("*.json"))

    def test_a_known_fault_is_named_with_its_cure(self, bundle: Path, picture: Path) -> None:
        host = replace(HOST, engine_version="10.2.0.19")
        wanted = r"known: TensorRT 10\.2\.0.*ultralytics#24367.*install TensorRT 10"
        with (
            Segmenter.load(bundle, gpu(bundle, host, sam_feature_0=shifted)) as segmenter,
            pytest.raises(BackendError, match=wanted),
        ):
            segmenter(picture, ["cat", "road"])

    def test_warm_up_finds_it_before_the_first_picture(self, bundle: Path) -> None:
        with (
            Segmenter.load(bundle, gpu(bundle, sam_feature_0=shifted)) as segmenter,
            pytest.raises(BackendError, match="sentinel: sam_image_encoder"),
        ):
            segmenter.warm_up()

    def test_a_wrong_text_encoder_encodes_no_name(self, bundle: Path) -> None:
        backend = gpu(bundle, prompt_embeddings=shifted)
        with (
            Segmenter.load(bundle, backend) as segmenter,
            pytest.raises(BackendError, match="sentinel: text_encoder fp32 gives wrong numbers"),
        ):
            segmenter.vocabulary(["cat"])
        assert ran(backend) == ["text_encoder"]

    def test_asked_to_go_without(self, bundle: Path, picture: Path) -> None:
        backend = gpu(bundle, sam_feature_0=shifted, prompt_embeddings=shifted)
        with Segmenter.load(bundle, backend, sentinel=False, overlap=False) as segmenter:
            assert segmenter(picture, ["cat", "road"]).labels.size
        assert ran(backend) == ["text_encoder", *GPU_GRAPHS]

    def test_small_deviations_pass(self, bundle: Path, picture: Path) -> None:
        backend = gpu(bundle, sam_feature_0=lambda array: array * np.float32(1 + 2e-5))
        with Segmenter.load(bundle, backend) as segmenter:
            assert segmenter(picture, ["cat", "road"]).labels.size

    def test_a_cpu_is_not_checked(self, bundle: Path, picture: Path, passes: Path) -> None:
        backend = gpu(bundle, None, sam_feature_0=shifted)
        with Segmenter.load(bundle, backend, overlap=False) as segmenter:
            segmenter(picture, ["cat", "road"])
        assert ran(backend) == ["text_encoder", *GPU_GRAPHS]
        assert not passes.exists()

    def test_a_bundle_without_references_says_that_nothing_is_checked(self, tiny_bundle: Path) -> None:
        with (
            Segmenter.load(tiny_bundle, gpu(tiny_bundle)) as segmenter,
            pytest.warns(UserWarning, match="no references, so this GPU's numbers go unchecked"),
        ):
            segmenter.warm_up(SIZE)

    def test_threads_wait_for_one_verdict(self, bundle: Path, picture_pixels: np.ndarray) -> None:
        backend = gpu(bundle)
        with Segmenter.load(bundle, backend) as segmenter:
            words = segmenter.vocabulary(["cat", "road"])
            backend.calls.clear()
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(lambda _: segmenter(picture_pixels, words), range(3)))
        assert ran(backend).count("sam_image_encoder") == 1 + 3


def test_verify_on_a_gpu_names_the_first_wrong_graph_and_known_faults(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = replace(HOST, engine_version="10.2.0.19")
    backend = gpu(bundle, host, sam_feature_0=shifted)
    monkeypatch.setattr("ebseg_deploy.runtime.backends.open_backend", lambda name, *, threads: backend)
    outcome = CliRunner().invoke(ebseg, ["verify", str(bundle), "--backend", "tensorrt"])
    assert outcome.exit_code == 1
    assert "the first is sam_image_encoder; known: TensorRT 10.2.0" in outcome.stderr
    assert outcome.stderr.count("\n") == 1


class TestMemory:
    def sentinel_runs(self, bundle: Path, host: GpuHost = HOST, **faults: Fault) -> int:
        """How often the encoders run when the graphs are loaded anew."""
        backend = gpu(bundle, host, **faults)
        with Segmenter.load(bundle, backend) as segmenter:
            segmenter.warm_up()
        return ran(backend).count("sam_image_encoder")

    def test_a_pass_is_remembered(self, bundle: Path, passes: Path) -> None:
        assert [self.sentinel_runs(bundle) for _ in range(3)] == [1, 0, 0]
        (file,) = passes.iterdir()
        kept = json.loads(file.read_text())
        assert kept["outputs"] == sum(len(each.spec.outputs) for each in Bundle.open(bundle).manifest.graphs) - 1
        assert 0 <= kept["worst"] < 1
        assert kept["facts"]["gpu"] == f"{HOST.gpu}, compute capability 8.6"

    def test_a_refusal_is_not(self, bundle: Path) -> None:
        for _ in range(2):
            with pytest.raises(BackendError, match="sentinel"):
                self.sentinel_runs(bundle, sam_feature_0=shifted)
        assert self.sentinel_runs(bundle) == 1

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("gpu", "GPU-00000000-0000-0000-0000-000000000001"),
            ("driver", "560.28.03, CUDA 12.6"),
            ("engine", "tensorrt-rtx"),
            ("engine_version", "10.13.0.35"),
            ("compute_capability", "8.9"),
        ],
    )
    def test_another_machine_is_checked_anew(self, bundle: Path, field: str, value: str) -> None:
        assert self.sentinel_runs(bundle) == 1
        assert self.sentinel_runs(bundle, replace(HOST, **{field: value})) == 1
        assert self.sentinel_runs(bundle) == 0

    def test_another_bundle_is_checked_anew(self, bundle: Path, make_tiny_bundle: Callable[..., Path]) -> None:
        other = add_references(make_tiny_bundle(sizes=(SIZE,), seed=4))
        assert [self.sentinel_runs(each) for each in (bundle, other, bundle)] == [1, 1, 0]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda file: file.write_bytes(b""),
            lambda file: file.write_bytes(file.read_bytes()[:-20]),
            lambda file: file.write_bytes(b"\xff\xfe"),
            lambda file: file.write_text(file.read_text().replace("8.6", "8.9")),
            lambda file: file.write_text(file.read_text().replace('"outputs": ', '"outputs": 0, "more": ')),
            lambda file: (file.unlink(), file.mkdir()),
        ],
    )
    def test_a_damaged_pass_is_none(self, bundle: Path, passes: Path, damage: Callable[[Path], object]) -> None:
        assert self.sentinel_runs(bundle) == 1
        (file,) = passes.iterdir()
        damage(file)
        assert self.sentinel_runs(bundle) == 1

    def test_a_cache_that_cannot_be_written_to(self, bundle: Path, passes: Path) -> None:
        passes.parent.mkdir(parents=True)
        passes.write_text("a file in its place")
        assert [self.sentinel_runs(bundle) for _ in range(2)] == [1, 1]

    def test_a_text_encoder_that_passed_is_remembered(self, bundle: Path) -> None:
        calls = []
        for name in ("cat", "dog"):
            backend = gpu(bundle)
            with Segmenter.load(bundle, backend) as segmenter:
                segmenter.vocabulary([name])
            calls.append(len(ran(backend)))
        assert calls == [2, 1]


class TestKnownBad:
    def records(self, bundle: Path) -> Iterator[Any]:
        yield from Bundle.open(bundle).manifest.graphs

    def faults(self, bundle: Path, host: GpuHost, graph: GraphName, **changes: Any) -> set[str]:
        record = msgspec.structs.replace(Bundle.open(bundle).graph(graph, SIZE), **changes)
        return {fault.reference for fault in known_faults(host, record)}

    def test_nothing_is_known_of_an_ordinary_machine(self, bundle: Path) -> None:
        assert not any(known_faults(HOST, record) for record in self.records(bundle))

    def test_each_entry_by_its_conditions(self, bundle: Path) -> None:
        blackwell = replace(HOST, engine="tensorrt-rtx", compute_capability="12.0", engine_version="1.7.1.116")
        half = {"precision": "fp16"}
        assert self.faults(bundle, blackwell, "sam_image_encoder", **half) == {"NVIDIA/TensorRT#4837"}
        assert self.faults(bundle, blackwell, "sam_image_encoder") == set()
        int8 = {"precision": "int8", "compute": ComputeRecord(base="fp16", quantised="int8")}
        assert self.faults(bundle, blackwell, "sam_image_encoder", **int8) == {"NVIDIA/TensorRT#4837"}
        assert self.faults(bundle, HOST, "adab_decoder", opset=20) == {"NVIDIA/TensorRT#4646"}
        assert self.faults(bundle, HOST, "adab_decoder", opset=19) == set()
        assert self.faults(bundle, HOST, "clip_image_encoder", **half) == {"NVIDIA/TensorRT#2709"}
        jetpack6 = replace(HOST, engine_version="10.3.0", compute_capability="8.7")
        assert self.faults(bundle, jetpack6, "sam_image_encoder", **half) == {"NVIDIA/TensorRT#4723"}
        assert self.faults(bundle, jetpack6, "sam_image_encoder") == set()

    def test_every_entry_says_what_to_do(self) -> None:
        for entry in KNOWN_BAD:
            assert entry.cure
            assert "#" in entry.reference
            assert "\n" not in str(entry)


def test_tf32_is_allowed_what_fp16_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebseg_deploy.runtime.verify.TOLERANCES", {"fp32": 2e-4, "fp16": 2e-2})
    assert tolerance("clip_dense", "fp32") == 2e-4
    assert tolerance("clip_dense", "fp32", tf32=True) == 2e-2
    assert tolerance("clip_dense", "fp16", tf32=True) == 2e-2
    with pytest.raises(EbsegError, match=r"precision 'fp12': no tolerance is known for it; verify one of fp32, fp16"):
        tolerance("clip_dense", "fp12")


def test_no_warning_when_all_is_well(bundle: Path, picture: Path) -> None:
    with warnings.catch_warnings(), Segmenter.load(bundle, gpu(bundle)) as segmenter:
        warnings.simplefilter("error")
        segmenter(picture, ["cat", "road"])
