"""What only a GPU can say; skipped, with the reason, where there is none."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy import Segmenter
from ebseg_deploy.contract import Size
from ebseg_deploy.errors import BackendError
from ebseg_deploy.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ebseg_deploy.runtime.backends.tensorrt_backend import TensorRtBackend
from ebseg_deploy.runtime.device import CudaPythonDevice, device_array, pinned_array
from ebseg_deploy.runtime.device.arrays import host_address
from ebseg_deploy.runtime.kernels import DeviceLabelMap
from ebseg_deploy.runtime.label_map import label_map
from tiny_bundles import add_references

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu() -> CudaPythonDevice:
    try:
        return CudaPythonDevice()
    except BackendError as error:
        pytest.skip(str(error))


def test_memory_goes_there_and_back(gpu: CudaPythonDevice) -> None:
    with ExitStack() as owned:
        stream = gpu.create_stream()
        owned.callback(gpu.destroy_stream, stream)
        there = device_array(gpu, (1000,), np.float32, owned)
        source, target = (pinned_array(gpu, (1000,), np.float32, owned) for _ in range(2))
        source[...] = np.arange(1000)
        gpu.copy_to_device(there.address, host_address(source), source.nbytes, stream)
        gpu.copy_to_host(host_address(target), there.address, target.nbytes, stream)
        gpu.synchronize(stream)
        np.testing.assert_array_equal(target, source)


@pytest.mark.parametrize("classes", [20, 300])
def test_the_label_kernel_gives_the_hosts_labels(gpu: CudaPythonDevice, classes: int) -> None:
    random = np.random.default_rng(0)
    arrays = (
        (random.normal(size=(1, 100, 40, 40)) * 3).astype(np.float32),
        random.random((1, 100, classes), dtype=np.float32),
    )
    where = (Size(height=160, width=160), (150, 160), (333, 250))
    with ExitStack() as owned:
        stream = gpu.create_stream()
        owned.callback(gpu.destroy_stream, stream)
        there = []
        for array in arrays:
            staged = pinned_array(gpu, array.shape, array.dtype, owned)
            staged[...] = array
            there.append(device_array(gpu, array.shape, array.dtype, owned))
            gpu.copy_to_device(there[-1].address, host_address(staged), staged.nbytes, stream)
        kernel = DeviceLabelMap(gpu)
        owned.callback(kernel.close)
        labels = kernel(*there, *where, stream=stream)
    assert (labels == label_map(arrays[0][0], arrays[1][0], *where)).mean() > 0.999


def test_engines_give_the_labels_of_onnxruntime(gpu: CudaPythonDevice, tiny_bundle_copy: Path, picture: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from ebseg_deploy.export.engines.build import BuildRequest, build_engines

    add_references(tiny_bundle_copy)  # so that the sentinel has something to look at
    capability = "{}.{}".format(*gpu.compute_capability)
    build_engines(BuildRequest(bundle=tiny_bundle_copy, target="tensorrt-rtx", compute_capabilities=(capability,)))
    with Segmenter.load(tiny_bundle_copy, "onnxruntime") as segmenter:
        words = segmenter.vocabulary(["cat", "road", "sky"], cache=False)
        wanted = segmenter(picture, words).labels
    backend = TensorRtBackend("tensorrt-rtx", device=gpu)
    with Segmenter.load(tiny_bundle_copy, backend) as segmenter, backend:
        for _ in range(3):  # TensorRT's first run, the one that is captured, and the graph
            assert (segmenter(picture, words).labels == wanted).mean() > 0.99


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "nv-tensorrt-rtx"])
@pytest.mark.parametrize("io_binding", [True, False])
def test_onnxruntimes_providers_give_the_labels_of_its_cpu(
    gpu: CudaPythonDevice, tiny_bundle_copy: Path, picture: Path, provider: str, io_binding: bool
) -> None:
    try:
        backend = OnnxRuntimeBackend(provider, io_binding=io_binding)
    except BackendError as error:
        pytest.skip(str(error))
    host = backend.gpu_host()
    assert host is not None
    assert host.compute_capability == "{}.{}".format(*gpu.compute_capability)
    add_references(tiny_bundle_copy)
    with Segmenter.load(tiny_bundle_copy, "onnxruntime") as segmenter:
        words = segmenter.vocabulary(["cat", "road", "sky"], cache=False)
        wanted = segmenter(picture, words).labels
    with Segmenter.load(tiny_bundle_copy, backend) as segmenter, backend:
        for _ in range(2):
            assert (segmenter(picture, words).labels == wanted).mean() > 0.99
