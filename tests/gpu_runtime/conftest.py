"""Engines for the fake TensorRT, and a device that must be left clean."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.runtime.device import RecordingDevice
from ebseg_deploy.runtime.kernels import device_label_map
from ebseg_deploy.runtime.kernels.compile import LABEL_MAP_SOURCE
from ebseg_deploy.runtime.kernels.device_label_map import LabelMapShape

HostFunction = Callable[..., "tuple[np.ndarray, bool]"]


@pytest.fixture(scope="session")
def engine_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with engines for the fake TensorRT; shared: do not change it."""
    from fake_tensorrt import write_engines

    folder = tmp_path_factory.mktemp("engines") / "tiny.ebseg"
    return write_engines(Path(shutil.copytree(tiny_bundle, folder)))


@pytest.fixture
def engine_bundle_copy(engine_bundle: Path, tmp_path: Path) -> Path:
    """Once more, to change or break."""
    return Path(shutil.copytree(engine_bundle, tmp_path / "copy.ebseg"))


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    """A recording device; the test fails if it leaves anything allocated."""
    made = RecordingDevice()
    yield made
    made.check_released()


@pytest.fixture(scope="session")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> HostFunction:
    """The kernel's source as C++: labels of (Q, h, w) masks and (Q, N) probabilities, and whether it saw NaN."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("label_map") / "label_map.so"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, "-x", "c++", *flags, "-o", library, LABEL_MAP_SOURCE], check=True)
    function = ctypes.CDLL(str(library)).label_map_on_host
    function.restype = None

    def run(masks: np.ndarray, probabilities: np.ndarray, shape: LabelMapShape) -> tuple[np.ndarray, bool]:
        masks, probabilities = np.ascontiguousarray(masks), np.ascontiguousarray(probabilities)
        labels = np.full((shape.output_height, shape.output_width), 65535, dtype=np.uint16)
        broken, sigmoids = ctypes.c_int(0), np.zeros(shape.queries, dtype=np.float32)
        pointers = [ctypes.c_void_p(each.ctypes.data) for each in (masks, probabilities, labels)]
        function(*pointers, ctypes.byref(broken), ctypes.byref(shape), ctypes.c_void_p(sigmoids.ctypes.data))
        return labels, bool(broken.value)

    return run


@pytest.fixture
def labelling_device(on_host: HostFunction, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDevice]:
    """A recording device whose label kernels compute with the C++ build; the test fails if it leaves anything."""
    monkeypatch.setattr(device_label_map, "compile_kernels", lambda source, capability: b"")
    device = RecordingDevice()
    load = device.load_kernel

    def load_kernel(image: bytes, name: str) -> int:
        kernel = load(image, name)
        kind = {"label_map_u8": np.uint8, "label_map_u16": np.uint16}[name]

        def start(stream: int, grid: tuple, block: tuple, shared: int, arguments: tuple) -> None:
            masks, probabilities, labels, broken = (each.value for each in arguments[:4])
            shape = arguments[4]
            pixels = shape.output_height * shape.output_width
            assert grid[0] * block[0] >= shape.output_width > (grid[0] - 1) * block[0]
            assert grid[1:] == (shape.output_height, 1)
            assert shared == 4 * shape.queries * block[0]
            mask_bytes = 4 * shape.queries * shape.mask_height * shape.mask_width
            spans = [(masks, mask_bytes), (probabilities, 4 * shape.queries * shape.classes)]
            written = [(labels, pixels * np.dtype(kind).itemsize), (broken, 4)]

            def act() -> None:
                planes = (shape.queries, shape.mask_height, shape.mask_width)
                found, fault = on_host(
                    device.read(*spans[0]).view(np.float32).reshape(planes),
                    device.read(*spans[1]).view(np.float32).reshape(shape.queries, shape.classes),
                    shape,
                )
                device.read(*written[0]).view(kind)[...] = found.reshape(-1)
                if fault:
                    device.read(broken, 4).view(np.int32)[...] = 1

            device.enqueue(name, stream, reads=spans, writes=written, act=act)

        device.define_kernel(kernel, start)
        return kernel

    monkeypatch.setattr(device, "load_kernel", load_kernel)
    yield device
    device.check_released()
