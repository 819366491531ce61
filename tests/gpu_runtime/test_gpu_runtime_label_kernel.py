"""The CUDA label map: compiled for the GPUs we name, and the same source as C++ against the numpy label map."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.contract import Size
from ebseg_deploy.errors import BackendError
from ebseg_deploy.runtime.device import DeviceArray, RecordingDevice, device_array
from ebseg_deploy.runtime.kernels import DeviceLabelMap
from ebseg_deploy.runtime.kernels.compile import LABEL_MAP_SOURCE, compile_kernels
from ebseg_deploy.runtime.kernels.device_label_map import LabelMapShape
from ebseg_deploy.runtime.label_map import label_map, score_maps
from hypothesis import given, settings
from hypothesis import strategies as st

ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "110", "120")
"""Turing, Ampere, Ada, Orin, Hopper, Thor, Blackwell: what docs/how-to/gpu-runtime.md lists."""
EQUAL_SCORES = 2e-6

HostFunction = Callable[..., np.ndarray]


def case(seed: int, queries: int, classes: int, rows: int, columns: int, spread: float) -> tuple:
    random = np.random.default_rng(seed)
    masks = (random.normal(size=(queries, rows, columns)) * spread).astype(np.float32)
    logits = random.normal(size=(queries, classes)) * 3
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    return masks, (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)


def shape_of(
    masks: np.ndarray, probabilities: np.ndarray, canvas: Size, valid: tuple[int, int], output: tuple[int, int]
) -> LabelMapShape:
    return LabelMapShape(*masks.shape, probabilities.shape[1], canvas.height, canvas.width, *valid, *output)


def assert_as_good(labels: np.ndarray, wanted: np.ndarray, scores: np.ndarray) -> None:
    """Equal, but for pixels where two scores are."""
    chosen = np.take_along_axis(scores, labels[None].astype(np.int64), axis=0)[0]
    assert (scores.max(axis=0) - chosen).max() < EQUAL_SCORES
    assert (labels != wanted).mean() < 0.01


class TestSameSourceAsCpp:
    @settings(max_examples=80, deadline=None)
    @given(st.data())
    def test_equal_to_the_numpy_label_map(self, on_host: HostFunction, data: st.DataObject) -> None:
        rows, columns = data.draw(st.integers(1, 20), "rows"), data.draw(st.integers(1, 20), "columns")
        canvas = Size(height=4 * rows, width=4 * columns)
        valid = (data.draw(st.integers(1, canvas.height)), data.draw(st.integers(1, canvas.width)))
        output = data.draw(st.one_of(st.just(valid), st.tuples(st.integers(1, 100), st.integers(1, 100))), "output")
        masks, probabilities = case(
            data.draw(st.integers(0, 2**32 - 1), "seed"),
            data.draw(st.integers(1, 20), "queries"),
            data.draw(st.integers(1, 300), "classes"),
            rows,
            columns,
            data.draw(st.floats(0.01, 8), "spread"),
        )
        arguments = (masks, probabilities, canvas, valid, output)
        labels, broken = on_host(masks, probabilities, shape_of(*arguments))
        assert not broken
        assert_as_good(labels, label_map(*arguments, threads=1), score_maps(*arguments, threads=1))

    def test_of_equal_classes_the_first_wins(self, on_host: HostFunction) -> None:
        masks, probabilities = case(1, 10, 20, 8, 8, 2.0)
        doubled = np.concatenate([probabilities, probabilities], axis=1)  # the second half starts inside a chunk
        labels, _ = on_host(masks, doubled, shape_of(masks, doubled, Size(height=32, width=32), (32, 32), (32, 32)))
        assert labels.max() < 20
        zeros = np.zeros_like(doubled)
        labels, _ = on_host(masks, zeros, shape_of(masks, zeros, Size(height=32, width=32), (32, 32), (32, 32)))
        assert not labels.any()

    # A probability of minus infinity loses everywhere, and breaks nothing.
    @pytest.mark.parametrize(("which", "value"), [(0, np.nan), (0, np.inf), (0, -np.inf), (1, np.nan), (1, np.inf)])
    def test_broken_numbers_are_reported(self, on_host: HostFunction, which: int, value: float) -> None:
        arrays = case(2, 5, 3, 8, 8, 1.0)
        arrays[which].flat[7] = value
        _, broken = on_host(*arrays, shape_of(*arrays, Size(height=32, width=32), (32, 32), (32, 32)))
        assert broken

    def test_extreme_logits(self, on_host: HostFunction) -> None:
        masks, probabilities = case(3, 6, 5, 8, 8, 3e4)
        arguments = (masks, probabilities, Size(height=32, width=32), (32, 32), (40, 40))
        labels, broken = on_host(masks, probabilities, shape_of(*arguments))
        assert not broken
        assert (labels == label_map(*arguments)).mean() > 0.99  # a sigmoid is a step: on it, either side is right


class TestCompilation:
    @pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_nvcc(self, architecture: str, tmp_path: Path) -> None:
        cubin = tmp_path / "label_map.cubin"
        flags = ["-std=c++17", "-Werror", "all-warnings", "-Xptxas", "-v", f"-arch=sm_{architecture}"]
        result = subprocess.run(
            ["nvcc", *flags, "-cubin", "-o", cubin, LABEL_MAP_SOURCE], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        spills = re.findall(r"(\d+) bytes spill", result.stderr)
        assert spills
        assert set(spills) == {"0"}
        assert b"label_map_u8" in cubin.read_bytes()
        assert b"label_map_u16" in cubin.read_bytes()

    @pytest.fixture
    def nvrtc(self) -> None:
        pytest.importorskip("cuda.bindings.nvrtc")
        try:
            compile_kernels(LABEL_MAP_SOURCE, (8, 9))
        except BackendError as error:
            pytest.skip(f"no NVRTC: {error}")

    @pytest.mark.usefixtures("nvrtc")
    @pytest.mark.parametrize("capability", [(7, 5), (8, 7), (12, 0)])
    def test_nvrtc_as_on_the_device(self, capability: tuple[int, int]) -> None:
        image = compile_kernels(LABEL_MAP_SOURCE, capability)
        assert image.startswith(b"\x7fELF")
        assert b"label_map_u8" in image

    @pytest.mark.usefixtures("nvrtc")
    def test_a_gpu_that_nvrtc_does_not_know(self) -> None:
        with pytest.raises(BackendError, match=r"sm_35.*install an NVRTC"):
            compile_kernels(LABEL_MAP_SOURCE, (3, 5))

    @pytest.mark.usefixtures("nvrtc")
    def test_a_mistake_in_the_source_is_shown(self, tmp_path: Path) -> None:
        source = tmp_path / "wrong.cu"
        source.write_text("__global__ void f() { nothing(); }")
        with pytest.raises(BackendError, match=r"wrong\.cu for sm_89.*identifier \"nothing\" is undefined") as caught:
            compile_kernels(source, (8, 9))
        assert "\n" not in str(caught.value)


class TestDeviceLabelMap:
    def upload(self, device: RecordingDevice, array: np.ndarray, owned: ExitStack) -> DeviceArray:
        found = device_array(device, array.shape, array.dtype, owned)
        device.read(found.address, found.nbytes)[...] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return found

    @pytest.mark.parametrize(("classes", "kind"), [(20, np.uint8), (256, np.uint8), (257, np.uint16)])
    @pytest.mark.parametrize("row", [0, 1])
    def test_equal_to_the_host_label_map(
        self, labelling_device: RecordingDevice, classes: int, kind: type, row: int
    ) -> None:
        batch = [case(seed, 6, classes, 16, 24, 3.0) for seed in range(2)]
        with ExitStack() as owned:
            stream = labelling_device.create_stream()
            owned.callback(labelling_device.destroy_stream, stream)
            kernel = DeviceLabelMap(labelling_device)
            owned.callback(kernel.close)
            masks = self.upload(labelling_device, np.stack([each[0] for each in batch]), owned)
            probabilities = self.upload(labelling_device, np.stack([each[1] for each in batch]), owned)
            arguments = (Size(height=64, width=96), (60, 90), (100, 150))
            labels = kernel(masks, probabilities, *arguments, stream=stream, row=row)
        assert labels.dtype == kind
        wanted = label_map(*batch[row], *arguments)
        assert_as_good(labels, wanted, score_maps(*batch[row], *arguments))

    def test_broken_numbers_are_not_turned_into_labels(self, labelling_device: RecordingDevice) -> None:
        masks, probabilities = case(0, 6, 4, 16, 24, 3.0)
        masks[2, 3, 4] = np.nan
        with ExitStack() as owned:
            stream = labelling_device.create_stream()
            owned.callback(labelling_device.destroy_stream, stream)
            kernel = DeviceLabelMap(labelling_device)
            owned.callback(kernel.close)
            on_device = [self.upload(labelling_device, each[None], owned) for each in (masks, probabilities)]
            with pytest.raises(BackendError, match="NaN or infinity"):
                kernel(*on_device, Size(height=64, width=96), (64, 96), (64, 96), stream=stream)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"row": 1}, "row 1 of mask logits"),
            ({"valid_size": (65, 96)}, r"valid size \(65, 96\)"),
            ({"class_probabilities": DeviceArray(address=256, shape=(1, 5, 4), dtype=np.dtype("f4"))}, "row 0 of"),
            ({"class_probabilities": DeviceArray(address=256, shape=(1, 6, 4), dtype=np.dtype("f2"))}, "float16"),
            ({"output_size": (0, 5)}, "labels of 4 classes"),
            ({"output_size": (70000, 1)}, "70000 rows"),
        ],
    )
    def test_what_does_not_fit(self, labelling_device: RecordingDevice, change: dict, message: str) -> None:
        with ExitStack() as owned:
            stream = labelling_device.create_stream()
            owned.callback(labelling_device.destroy_stream, stream)
            kernel = DeviceLabelMap(labelling_device)
            owned.callback(kernel.close)
            arguments = {
                "mask_logits": device_array(labelling_device, (1, 6, 16, 24), np.float32, owned),
                "class_probabilities": device_array(labelling_device, (1, 6, 4), np.float32, owned),
                "canvas": Size(height=64, width=96),
                "valid_size": (64, 96),
                "output_size": (64, 96),
                "stream": stream,
            }
            with pytest.raises(BackendError, match=message):
                kernel(**{**arguments, **change})
