"""A whole segmentation over the recording device: the right numbers, and nothing a real GPU would punish."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy import Segmenter
from ebseg_deploy.contract import Size
from ebseg_deploy.errors import BackendError
from ebseg_deploy.runtime.backends.tensorrt_backend import TensorRtBackend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.device import DeviceArray, DeviceMisuseError, RecordingDevice
from ebseg_deploy.runtime.engine_lane import EngineLane
from ebseg_deploy.runtime.engine_pipeline import EnginePipeline
from ebseg_deploy.runtime.kernels import device_label_map
from ebseg_deploy.runtime.pipeline import Pipeline, Prediction
from fake_tensorrt import FakeTensorRt, write_engines

CANVAS = Size(height=64, width=96)
ENGINES = ["clip_image_encoder", "sam_image_encoder", "adab_decoder", "open_vocab_head"]


def make(
    folder: Path, device: RecordingDevice, trt: FakeTensorRt | None = None, **options: object
) -> tuple[EnginePipeline, TensorRtBackend]:
    backend = TensorRtBackend("tensorrt-rtx", device=device, module=trt or FakeTensorRt(device))
    # The sentinel's run would stand among those that are counted here; it has tests of its own.
    return EnginePipeline(Bundle.open(folder), backend, precision="fp32", sentinel=False, **options), backend


def tensors(seed: int = 0, classes: int = 4) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    words = random.normal(size=(classes + 1, 16)).astype(np.float32)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    picture = {
        "image": random.integers(0, 256, (1, 3, 64, 96), dtype=np.uint8),
        "valid_size": np.array([[60, 90]], dtype=np.int32),
    }
    return picture, {"text_embeddings": words, "seen": (np.arange(classes) % 2).astype(np.float32)}


@pytest.fixture(scope="session")
def reference(engine_bundle: Path) -> Callable[..., Prediction]:
    """The same bundle in ONNX Runtime."""
    from ebseg_deploy.runtime.backends import open_backend

    pipeline = Pipeline(Bundle.open(engine_bundle), open_backend("onnxruntime", threads=1), precision="fp32")
    return lambda seed=0, classes=4: pipeline.run(CANVAS, *tensors(seed, classes))


def assert_same(found: Prediction, wanted: Prediction) -> None:
    np.testing.assert_allclose(found.mask_logits, wanted.mask_logits, atol=1e-5)
    np.testing.assert_allclose(found.class_probabilities, wanted.class_probabilities, atol=1e-5)


class TestNumbers:
    @pytest.mark.parametrize("rtx", [True, False])
    @pytest.mark.parametrize("overlap", [True, False])
    @pytest.mark.parametrize("cuda_graphs", [True, False])
    def test_equal_to_onnxruntime_run_after_run(
        self,
        engine_bundle: Path,
        device: RecordingDevice,
        reference: Callable[..., Prediction],
        rtx: bool,
        overlap: bool,
        cuda_graphs: bool,
    ) -> None:
        trt = FakeTensorRt(device, rtx=rtx)
        pipeline, _ = make(engine_bundle, device, trt, overlap=overlap, cuda_graphs=cuda_graphs)
        # Pictures, words and the number of classes change and come back.
        for seed, classes in ((0, 4), (1, 4), (2, 4), (2, 7), (3, 7), (4, 7), (5, 1), (6, 4), (6, 4), (7, 12)):
            assert_same(pipeline.run(CANVAS, *tensors(seed, classes)), reference(seed, classes))
        pipeline.close()

    def test_label_maps_made_on_the_gpu(
        self, engine_bundle: Path, labelling_device: RecordingDevice, picture: Path
    ) -> None:
        backend = TensorRtBackend("tensorrt-rtx", device=labelling_device, module=FakeTensorRt(labelling_device))
        with Segmenter.load(engine_bundle, "onnxruntime") as segmenter:
            words = segmenter.vocabulary(["cat", "road", "sky"], cache=False)
            wanted = [segmenter(picture, words, output_size=size).labels for size in (None, (90, 70), None)]
            scores = segmenter(picture, words, scores=True).scores
        with Segmenter.load(engine_bundle, backend, sentinel=False) as segmenter, backend:
            for size, labels in zip((None, (90, 70), None), wanted, strict=True):
                before = len(labelling_device.operations)
                found = segmenter(picture, words, output_size=size)
                assert (found.labels == labels).mean() > 0.999
                assert found.labels.dtype == np.uint8
                # Nothing as large as the masks comes back: one label a pixel, and whether a number was broken.
                back = [each.size for each in labelling_device.operations[before:] if each.kind == "copy_to_host"]
                assert back == [labels.size, 4]
            np.testing.assert_allclose(segmenter(picture, words, scores=True).scores, scores, atol=1e-4)

    def test_a_batch_that_is_not_full(
        self, make_tiny_bundle: Callable[..., Path], labelling_device: RecordingDevice, picture_pixels: np.ndarray
    ) -> None:
        folder = write_engines(make_tiny_bundle(batch=2, sizes=(CANVAS,)))
        pictures = [picture_pixels, picture_pixels[::-1], picture_pixels[:, ::-1][:40]]
        backend = TensorRtBackend("tensorrt-rtx", device=labelling_device, module=FakeTensorRt(labelling_device))
        with Segmenter.load(folder, "onnxruntime") as segmenter:
            words = segmenter.vocabulary(["cat", "road", "sky"], cache=False)
            wanted = segmenter.batch(pictures, words)
        with Segmenter.load(folder, backend, sentinel=False) as segmenter, backend:
            found = segmenter.batch(pictures, words)
        assert len(found) == 3
        for one, other in zip(found, wanted, strict=True):
            assert (one.labels == other.labels).mean() > 0.999
            assert one.valid_size == other.valid_size

    def test_label_maps_without_nvrtc_are_made_on_the_host(
        self, engine_bundle: Path, device: RecordingDevice, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(source: Path, capability: tuple[int, int]) -> bytes:
            raise BackendError("NVRTC: no libnvrtc", cure="pip install nvidia-cuda-nvrtc")

        monkeypatch.setattr(device_label_map, "compile_kernels", missing)
        with Segmenter.load(engine_bundle, "onnxruntime") as segmenter:
            words = segmenter.vocabulary(["cat", "road", "sky"], cache=False)
            wanted = segmenter(picture, words).labels
        backend = TensorRtBackend("tensorrt-rtx", device=device, module=FakeTensorRt(device))
        with Segmenter.load(engine_bundle, backend, sentinel=False) as segmenter, backend:
            with pytest.warns(UserWarning, match=r"label maps are made on the CPU: NVRTC.*nvidia-cuda-nvrtc"):
                np.testing.assert_array_equal(segmenter(picture, words).labels, wanted)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # said once
                np.testing.assert_array_equal(segmenter(picture, words).labels, wanted)

    def test_images_on_the_gpu(
        self, engine_bundle: Path, device: RecordingDevice, reference: Callable[..., Prediction]
    ) -> None:
        pipeline, _ = make(engine_bundle, device)
        foreign = device.create_stream()
        for seed in range(3):
            picture, words = tensors(seed)
            address = device.allocate(picture["image"].nbytes)

            def draw(address: int = address, pixels: np.ndarray = picture["image"]) -> None:
                device.read(address, pixels.nbytes)[...] = pixels.reshape(-1)

            device.enqueue("draw", foreign, reads=[], writes=[(address, picture["image"].nbytes)], act=draw)
            image = DeviceArray(address=address, shape=picture["image"].shape, dtype=np.dtype(np.uint8), stream=foreign)
            before = len(device.operations)
            found = pipeline.run(CANVAS, {**picture, "image": image}, words)
            assert_same(found, reference(seed))
            sizes = [each.size for each in device.operations[before:] if each.kind == "copy_to_device"]
            assert picture["image"].nbytes not in sizes
            device.free(address)
        device.destroy_stream(foreign)
        pipeline.close()

    def test_results_on_the_gpu(
        self, engine_bundle: Path, device: RecordingDevice, reference: Callable[..., Prediction]
    ) -> None:
        pipeline, _ = make(engine_bundle, device)
        with pipeline.on_device(CANVAS, *tensors(1, 3)) as found:
            assert not any(each.kind == "copy_to_host" for each in device.operations)
            device.synchronize(found.stream)
            wanted = reference(1, 3)
            for name in ("mask_logits", "class_probabilities"):
                given = getattr(found, name).__cuda_array_interface__
                assert (given["version"], given["typestr"], given["stream"]) == (3, "<f4", found.stream)
                values = device.read(given["data"][0], 4 * int(np.prod(given["shape"]))).view(np.float32)
                np.testing.assert_allclose(values.reshape(given["shape"]), getattr(wanted, name), atol=1e-5)
        pipeline.close()

    def test_threads(self, engine_bundle: Path, device: RecordingDevice, reference: Callable[..., Prediction]) -> None:
        wanted = [reference(seed) for seed in range(4)]
        trt = FakeTensorRt(device)
        pipeline, _ = make(engine_bundle, device, trt, concurrent_runs=2)
        barrier = threading.Barrier(4)

        def work(seed: int) -> None:
            barrier.wait(timeout=10)
            for _ in range(6):
                assert_same(pipeline.run(CANVAS, *tensors(seed)), wanted[seed])

        with ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(work, range(4)))) == 4
        assert trt.live_contexts <= 2 * 4
        assert trt.plans == 4
        pipeline.close()
        assert trt.live_contexts == 0


class TestWork:
    def runs(self, pipeline: EnginePipeline, device: RecordingDevice, *arguments: int) -> list[str]:
        """What a run puts on streams, by name."""
        before = len(device.operations)
        pipeline.run(CANVAS, *tensors(*arguments))
        return [each.name for each in device.operations[before:]]

    def test_nothing_but_engines_between_the_picture_and_the_results(
        self, engine_bundle: Path, device: RecordingDevice
    ) -> None:
        pipeline, _ = make(engine_bundle, device)
        pictures, words, results = ["copy_to_device"] * 2, ["copy_to_device"] * 2, ["copy_to_host"] * 2
        assert self.runs(pipeline, device) == [*pictures, *words, *ENGINES, *results]
        # Same words: no copy of them. The engines are noted, and launched in one go; then only launched.
        assert self.runs(pipeline, device) == [*pictures, *ENGINES, "graph", *results]
        assert self.runs(pipeline, device) == [*pictures, "graph", *results]
        # Other words, as many: copied, same graph. Another number: the graph does not hold any more.
        assert self.runs(pipeline, device, 1) == [*pictures, *words, "graph", *results]
        assert self.runs(pipeline, device, 1, 5) == [*pictures, *words, *ENGINES, *results]
        assert self.runs(pipeline, device, 1, 5) == [*pictures, *ENGINES, "graph", *results]
        pipeline.close()

    def test_warm_up_runs_every_engine_once(
        self, engine_bundle: Path, labelling_device: RecordingDevice, reference: Callable[..., Prediction]
    ) -> None:
        trt = FakeTensorRt(labelling_device)
        pipeline, _ = make(engine_bundle, labelling_device, trt)
        pipeline.open(CANVAS)
        pipeline.open(CANVAS)
        assert [each.name for each in labelling_device.operations if each.kind == "kernel"] == ENGINES
        assert_same(pipeline.run(CANVAS, *tensors()), reference())
        assert trt.live_contexts == 4
        pipeline.close()

    def test_encoders_run_on_two_streams(self, engine_bundle: Path, device: RecordingDevice) -> None:
        for overlap, streams in ((True, 2), (False, 1)):
            pipeline, _ = make(engine_bundle, device, overlap=overlap)
            device.operations.clear()
            pipeline.run(CANVAS, *tensors())
            used = {each.name: each.stream for each in device.operations if each.kind == "kernel"}
            assert len({used["clip_image_encoder"], used["sam_image_encoder"]}) == streams
            assert used["sam_image_encoder"] == used["adab_decoder"] == used["open_vocab_head"]
            pipeline.close()

    @pytest.mark.parametrize("cuda_graphs", [True, False])
    @pytest.mark.parametrize("forgotten", [0, 1])
    def test_either_wait_forgotten_is_seen(
        self,
        engine_bundle: Path,
        monkeypatch: pytest.MonkeyPatch,
        forgotten: int,
        cuda_graphs: bool,
    ) -> None:
        device = RecordingDevice()
        pipeline, _ = make(engine_bundle, device, cuda_graphs=cuda_graphs)
        real, calls = device.wait_event, []

        def forget(stream: int, event: int) -> None:
            calls.append(stream)
            if len(calls) % 2 != (forgotten + 1) % 2:
                real(stream, event)

        monkeypatch.setattr(device, "wait_event", forget)

        def three_runs() -> None:
            for seed in range(3):
                pipeline.run(CANVAS, *tensors(seed))

        with pytest.raises(DeviceMisuseError, match="touch the same memory"):
            three_runs()

    def test_results_read_too_early_are_seen(
        self, engine_bundle: Path, monkeypatch: pytest.MonkeyPatch, reference: Callable[..., Prediction]
    ) -> None:
        device = RecordingDevice()
        pipeline, _ = make(engine_bundle, device)
        monkeypatch.setattr(device, "synchronize", lambda stream: None)
        with pytest.raises(AssertionError):
            assert_same(pipeline.run(CANVAS, *tensors()), reference())

    def test_an_engine_that_cannot_be_captured_runs_without(
        self, engine_bundle: Path, device: RecordingDevice, reference: Callable[..., Prediction]
    ) -> None:
        pipeline, _ = make(engine_bundle, device, FakeTensorRt(device, capturable=False))
        pipeline.run(CANVAS, *tensors())
        with pytest.warns(UserWarning, match="without CUDA graphs.*not capturable"):
            pipeline.run(CANVAS, *tensors())
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            assert_same(pipeline.run(CANVAS, *tensors(1)), reference(1))
        assert not any(each.kind == "graph" for each in device.operations)
        pipeline.close()

    def test_a_capture_that_fails_midway_is_ended(
        self,
        engine_bundle: Path,
        device: RecordingDevice,
        monkeypatch: pytest.MonkeyPatch,
        reference: Callable[..., Prediction],
    ) -> None:
        trt = FakeTensorRt(device)
        pipeline, _ = make(engine_bundle, device, trt)
        pipeline.run(CANVAS, *tensors())
        real, failures = device.enqueue, ["cudaErrorStreamCaptureUnsupported"]

        def enqueue(name: str, stream: int, **more: object) -> None:
            if name == "open_vocab_head" and failures:
                raise BackendError(failures.pop())
            real(name, stream, **more)

        monkeypatch.setattr(device, "enqueue", enqueue)
        with pytest.warns(UserWarning, match="without CUDA graphs.*CaptureUnsupported"):
            assert_same(pipeline.run(CANVAS, *tensors(1)), reference(1))
        pipeline.close()


class TestRelease:
    def test_closed_twice_and_used_again(
        self, engine_bundle: Path, device: RecordingDevice, reference: Callable[..., Prediction]
    ) -> None:
        trt = FakeTensorRt(device)
        pipeline, backend = make(engine_bundle, device, trt)
        pipeline.run(CANVAS, *tensors())
        pipeline.close()
        pipeline.close()
        device.check_released()
        assert trt.live_contexts == 0
        assert_same(pipeline.run(CANVAS, *tensors(1)), reference(1))
        pipeline.close()
        assert repr(backend) == "TensorRtBackend('tensorrt-rtx', 0 graphs open)"

    def test_closing_waits_for_runs_that_go_on(
        self, engine_bundle: Path, labelling_device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two runs stand before their label maps when two threads close: nothing is made after that and left."""
        trt = FakeTensorRt(labelling_device)
        pipeline, _ = make(engine_bundle, labelling_device, trt, concurrent_runs=2)
        pipeline.open(CANVAS)
        both, go_on = threading.Barrier(3), threading.Event()
        start = EngineLane.start

        def wait_and_start(lane: EngineLane, *arguments: object) -> None:
            both.wait(timeout=10)
            assert go_on.wait(timeout=10)
            start(lane, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(EngineLane, "start", wait_and_start)
        sizes = [((60, 90), (60, 90))]
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(pipeline.label_maps, CANVAS, *tensors(seed), sizes) for seed in range(2)]
            both.wait(timeout=10)
            closes = [pool.submit(pipeline.close) for _ in range(2)]
            time.sleep(0.1)
            assert not any(each.done() for each in (*runs, *closes))
            go_on.set()
            assert [run.result(timeout=10)[0].shape for run in runs] == [(60, 90)] * 2
            for close in closes:
                close.result(timeout=10)
        assert trt.live_contexts == 0
        labelling_device.check_released()

    def test_closing_under_ones_own_results_is_refused(self, engine_bundle: Path, device: RecordingDevice) -> None:
        trt = FakeTensorRt(device)
        pipeline, _ = make(engine_bundle, device, trt)
        with pipeline.on_device(CANVAS, *tensors()):
            with pytest.raises(BackendError, match="while their results are in use; close them after the with block"):
                pipeline.close()
            assert trt.live_contexts == 4
        pipeline.close()
        assert trt.live_contexts == 0

    @pytest.mark.parametrize("started", range(4))
    def test_a_failing_engine_leaves_nothing_behind(
        self, engine_bundle: Path, device: RecordingDevice, started: int
    ) -> None:
        trt = FakeTensorRt(device, fail_after=started)
        pipeline, _ = make(engine_bundle, device, trt)
        with pytest.raises(BackendError, match=f"engine {ENGINES[started]}: the run could not be started"):
            pipeline.run(CANVAS, *tensors())
        assert trt.live_contexts == 0
        device.check_released()

    def test_memory_that_runs_out_while_a_lane_is_made(
        self, engine_bundle: Path, device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trt = FakeTensorRt(device)
        pipeline, _ = make(engine_bundle, device, trt)
        real, left = device.allocate, [9]

        def allocate(size: int) -> int:
            left[0] -= 1
            if left[0] < 0:
                raise BackendError("cuda-python: cudaMalloc gave cudaErrorMemoryAllocation")
            return real(size)

        monkeypatch.setattr(device, "allocate", allocate)
        with pytest.raises(BackendError, match="cudaErrorMemoryAllocation"):
            pipeline.run(CANVAS, *tensors())
        device.check_released()
        left[0] = 1000
        pipeline.run(CANVAS, *tensors())
        pipeline.close()


class TestRefusals:
    def test_more_classes_than_the_profile_names_the_option(self, engine_bundle: Path, device: RecordingDevice) -> None:
        pipeline, _ = make(engine_bundle, device)
        with pytest.raises(BackendError, match=r"built for 2 to 13.*ebseg build.*--classes 1:13:13"):
            pipeline.run(CANVAS, *tensors(0, 13))
        pipeline.close()

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("image", np.zeros((1, 3, 64, 96), np.float32), r"image is float32 \(1, 3, 64, 96\); give uint8"),
            ("image", np.zeros((1, 64, 96, 3), np.uint8), r"image is uint8 \(1, 64, 96, 3\); give uint8"),
            ("valid_size", np.zeros((1, 2), np.int64), "valid_size is int64"),
        ],
    )
    def test_pictures_that_do_not_fit(
        self, engine_bundle: Path, device: RecordingDevice, name: str, value: np.ndarray, message: str
    ) -> None:
        pipeline, _ = make(engine_bundle, device)
        picture, words = tensors()
        with pytest.raises(BackendError, match=message):
            pipeline.run(CANVAS, {**picture, name: value}, words)
        pipeline.close()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seen": np.zeros(5, np.float32)}, "text_embeddings has 5 rows and seen 5; give a row for each class"),
            ({"text_embeddings": np.zeros((5, 17), np.float32)}, r"text_embeddings has shape \(5, 17\)"),
            ({"more": np.zeros(5, np.float32)}, "unexpected input more"),
        ],
    )
    def test_words_that_do_not_fit(
        self, engine_bundle: Path, device: RecordingDevice, change: dict[str, np.ndarray], message: str
    ) -> None:
        pipeline, _ = make(engine_bundle, device)
        picture, words = tensors()
        with pytest.raises(BackendError, match=message):
            pipeline.run(CANVAS, picture, {**words, **change})
        pipeline.close()

    def test_a_picture_without_its_size(self, engine_bundle: Path, device: RecordingDevice) -> None:
        pipeline, _ = make(engine_bundle, device)
        picture, words = tensors()
        with pytest.raises(BackendError, match="picture of image; give image and valid_size"):
            pipeline.run(CANVAS, {"image": picture["image"]}, words)
        pipeline.close()

    def test_no_concurrent_runs(self, engine_bundle: Path, device: RecordingDevice) -> None:
        with pytest.raises(BackendError, match="0 concurrent runs"):
            make(engine_bundle, device, concurrent_runs=0)
