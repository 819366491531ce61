"""The sentinel over TensorRT's stand-in: the first run of real plans on the recording device, on its real streams."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from ebseg_deploy import Segmenter
from ebseg_deploy.contract import Size
from ebseg_deploy.errors import BackendError
from ebseg_deploy.runtime import gpu_host
from ebseg_deploy.runtime.backends.tensorrt_backend import TensorRtBackend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.cache import cache_folder
from ebseg_deploy.runtime.device import RecordingDevice
from ebseg_deploy.runtime.engine_file import read_sidecar, sidecar_path
from ebseg_deploy.runtime.engine_pipeline import EnginePipeline
from ebseg_deploy.runtime.gpu_host import GpuHost, driver_version, find_gpu
from fake_tensorrt import PROFILE, FakeTensorRt, write_engines
from tiny_bundles import add_references, write_tiny_bundle

SIZE = Size(height=64, width=64)
ENGINES = ["clip_image_encoder", "sam_image_encoder", "adab_decoder", "open_vocab_head"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentinel") / "b.ebseg"
    return write_engines(add_references(write_tiny_bundle(folder, sizes=(SIZE,))))


@pytest.fixture
def folder(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with references and engines, and a cache of this test's own."""
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(shared, tmp_path / "b.ebseg"))


def load(folder: Path, device: RecordingDevice, **options: Any) -> EnginePipeline:
    backend = TensorRtBackend("tensorrt-rtx", device=device, module=FakeTensorRt(device))
    return EnginePipeline(Bundle.open(folder), backend, precision="fp32", **options)


def engines_run(folder: Path, device: RecordingDevice, **options: Any) -> list[str]:
    """Engines that ran while the canvas was opened."""
    device.operations.clear()
    pipeline = load(folder, device, **options)
    pipeline.open(SIZE)
    pipeline.close()
    return [each.name for each in device.operations if each.kind == "kernel"]


def replace_plan(folder: Path, graph: str, by: Path) -> None:
    """Give one graph the engine of another bundle, with a sidecar that hides it: a plan that is silently wrong."""
    place = Path("engines/tensorrt-rtx/fp32")
    plan = next((folder / place).glob(f"{graph}*.plan"))
    other = by / place / plan.name
    sidecar = msgspec.structs.replace(read_sidecar(other), source=read_sidecar(plan).source)
    shutil.copy(other, plan)
    sidecar_path(plan).write_bytes(msgspec.json.encode(sidecar))


def test_right_engines_run_once_and_are_remembered(folder: Path, device: RecordingDevice) -> None:
    assert engines_run(folder, device) == ENGINES
    # Warm-up alone from then on: the sentinel's run was that, too, the first time.
    assert engines_run(folder, device) == ENGINES
    (passed,) = cache_folder("sentinels").iterdir()
    facts = msgspec.json.decode(passed.read_bytes())["facts"]
    assert facts["engine"] == "tensorrt-rtx 1.7.1.116"
    assert facts["driver"] == device.driver
    plan = folder / "engines/tensorrt-rtx/fp32/sam_image_encoder.64x64.plan"
    assert facts["plan of sam_image_encoder"] == read_sidecar(plan).plan.sha256


@pytest.mark.parametrize("graph", ENGINES)
def test_a_plan_that_is_silently_wrong_is_refused_and_leaves_nothing(
    folder: Path, device: RecordingDevice, make_tiny_bundle: Callable[..., Path], graph: str
) -> None:
    # The tiny head has no weights of its own: another bundle's is the same engine.
    other = write_engines(make_tiny_bundle(seed=9, sizes=(SIZE,)))
    replace_plan(folder, graph, other)
    pipeline = load(folder, device)
    if graph == "open_vocab_head":
        pipeline.open(SIZE)
    else:
        for _ in range(2):
            with pytest.raises(BackendError, match=f"sentinel: {graph} fp32 gives wrong numbers on tensorrt-rtx"):
                pipeline.open(SIZE)
        assert not cache_folder("sentinels").exists()
    pipeline.close()
    pipeline = load(folder, device, sentinel=False)
    pipeline.open(SIZE)
    pipeline.close()


def test_another_plan_or_driver_is_checked_anew(
    folder: Path, device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def passes() -> int:
        engines_run(folder, device)
        return len(list(cache_folder("sentinels").iterdir()))

    assert [passes(), passes()] == [1, 1]
    monkeypatch.setattr(device, "driver", "560.28.03, CUDA 12.6")
    assert [passes(), passes()] == [2, 2]
    write_engines(folder, version="1.7.1.116")  # the same bytes
    assert passes() == 2
    monkeypatch.setattr(device, "identity", "GPU-1")
    assert passes() == 3


def test_a_second_lane_is_not_checked_again(folder: Path, device: RecordingDevice) -> None:
    pipeline = load(folder, device)
    pipeline.open(SIZE)
    device.operations.clear()
    random = np.random.default_rng(0)
    picture = {"image": random.integers(0, 256, (1, 3, 64, 64), np.uint8), "valid_size": np.array([[64, 64]], np.int32)}
    words = {"text_embeddings": np.eye(5, 16, dtype=np.float32), "seen": np.ones(4, np.float32)}
    with pipeline.on_device(SIZE, picture, words) as first, pipeline.on_device(SIZE, picture, words) as second:
        assert first.stream != second.stream
        assert [each.name for each in device.operations if each.kind == "kernel"] == ENGINES * 2
    pipeline.close()


def test_a_profile_without_the_references_classes_leaves_the_head_unchecked(
    tmp_path: Path, device: RecordingDevice, make_tiny_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    folder = write_engines(add_references(make_tiny_bundle(sizes=(SIZE,)), classes=20))
    with pytest.warns(UserWarning, match=r"open_vocab_head goes unchecked: built for 1 to 12 classes, .* has 20"):
        assert engines_run(folder, device) == ENGINES
    assert not cache_folder("sentinels").exists()


@pytest.mark.parametrize(("profile", "pictures"), [((1, 1, 4), 2), ((1, 1, 4), 8), ((3, 3, 4), 2)])
def test_a_dynamic_batch_is_checked_with_as_many_pictures_as_fit(
    tmp_path: Path,
    device: RecordingDevice,
    make_tiny_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    profile: tuple[int, int, int],
    pictures: int,
) -> None:
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PROFILE, "batch", profile)
    folder = make_tiny_bundle(sizes=(SIZE,), batch=8, dynamic_batch=True)
    write_engines(add_references(folder, pictures=pictures))
    assert engines_run(folder, device)[:4] == ENGINES
    assert len(list(cache_folder("sentinels").iterdir())) == 1
    replace_plan(
        folder,
        "adab_decoder",
        write_engines(make_tiny_bundle("wrong.ebseg", sizes=(SIZE,), batch=8, dynamic_batch=True, seed=9)),
    )
    pipeline = load(folder, device)
    with pytest.raises(BackendError, match="sentinel: adab_decoder"):
        pipeline.open(SIZE)
    pipeline.close()


def test_engines_in_tf32_are_judged_as_such(
    folder: Path, device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    for plan in folder.rglob("*.plan"):
        sidecar = read_sidecar(plan)
        settings = msgspec.structs.replace(sidecar.settings, tf32=True)
        sidecar_path(plan).write_bytes(msgspec.json.encode(msgspec.structs.replace(sidecar, settings=settings)))
    monkeypatch.setattr("ebseg_deploy.runtime.verify.TOLERANCES", {"fp32": 0.0, "fp16": 1e-2})
    monkeypatch.setattr("ebseg_deploy.runtime.verify.CHAIN_TOLERANCES", {"fp32": 0.0, "fp16": 1e-2})
    assert engines_run(folder, device) == ENGINES


def test_the_text_encoder_is_checked_through_the_segmenter(
    folder: Path, device: RecordingDevice, make_tiny_bundle: Callable[..., Path]
) -> None:
    replace_plan(folder, "text_encoder", write_engines(make_tiny_bundle(seed=9, sizes=(SIZE,))))
    backend = TensorRtBackend("tensorrt-rtx", device=device, module=FakeTensorRt(device))
    wrong = "sentinel: text_encoder fp32 gives wrong numbers"
    with backend, Segmenter.load(folder, backend) as segmenter, pytest.raises(BackendError, match=wrong):
        segmenter.vocabulary(["cat"])


class FakeDriver:
    """libcuda, as far as it is asked who the GPU is. `fails` names a call that gives an error."""

    def __init__(self, fails: str = "", *, old: bool = False) -> None:
        def answer(name: str, act: Callable[..., object]) -> Callable[..., int]:
            def call(*arguments: Any) -> int:
                if name == fails:
                    return 100
                act(*arguments)
                return 0

            return call

        def identify(identity: Any, device: Any) -> None:
            identity._obj[:] = range(16)

        calls = {
            "cuInit": lambda flags: None,
            "cuDriverGetVersion": lambda version: setattr(version._obj, "value", 12040),
            "cuDeviceGet": lambda device, index: setattr(device._obj, "value", index),
            "cuDeviceGetUuid" if old else "cuDeviceGetUuid_v2": identify,
            "cuDeviceGetAttribute": lambda value, attribute, device: setattr(
                value._obj, "value", {75: 8, 76: 7}[attribute]
            ),
        }
        self.__dict__.update({name: answer(name, act) for name, act in calls.items()})


@pytest.mark.parametrize("old", [False, True])
def test_the_driver_says_which_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: bool) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(old=old))
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\n")
    monkeypatch.setattr(gpu_host, "DRIVER_FILES", (tmp_path / "missing", version))
    assert find_gpu(engine="onnxruntime:cuda", engine_version="1.32.0") == GpuHost(
        engine="onnxruntime:cuda",
        engine_version="1.32.0",
        gpu="GPU-00010203-0405-0607-0809-0a0b0c0d0e0f",
        compute_capability="8.7",
        driver="550.54.14, CUDA 12.4",
    )


@pytest.mark.parametrize(
    "call", ["cuInit", "cuDriverGetVersion", "cuDeviceGet", "cuDeviceGetUuid_v2", "cuDeviceGetAttribute"]
)
def test_no_gpu_to_be_found(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(call))
    assert find_gpu(engine="e", engine_version="1") is None


def test_no_driver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> SimpleNamespace:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert find_gpu(engine="e", engine_version="1") is None


def test_a_driver_whose_release_is_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_host, "DRIVER_FILES", (tmp_path / "missing",))
    assert driver_version(13000) == "CUDA 13.0"
