"""Engines of a dynamic batch over the recording device: the number of pictures changes from run to run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy import Segmenter
from ebseg_deploy.errors import BackendError
from ebseg_deploy.runtime.backends import open_backend
from ebseg_deploy.runtime.backends.tensorrt_backend import TensorRtBackend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.device import RecordingDevice
from ebseg_deploy.runtime.engine_pipeline import EnginePipeline
from ebseg_deploy.runtime.pipeline import Pipeline
from fake_tensorrt import FakeTensorRt, write_engines
from tiny_bundles import TINY_SIZES, write_tiny_bundle

SIZE = TINY_SIZES[0]


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dynamic") / "tiny.ebseg"
    return write_engines(write_tiny_bundle(folder, batch=8, dynamic_batch=True, sizes=(SIZE,)))


def tensors(pictures: int, classes: int, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    words = random.normal(size=(classes + 1, 16)).astype(np.float32)
    picture = {
        "image": random.integers(0, 256, (pictures, 3, SIZE.height, SIZE.width), dtype=np.uint8),
        "valid_size": np.full((pictures, 2), 60, dtype=np.int32),
    }
    return picture, {"text_embeddings": words, "seen": (np.arange(classes) % 2).astype(np.float32)}


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_the_number_of_pictures_changes(dynamic: Path, device: RecordingDevice, cuda_graphs: bool) -> None:
    bundle = Bundle.open(dynamic)
    backend = TensorRtBackend("tensorrt-rtx", device=device, module=FakeTensorRt(device))
    pipeline = EnginePipeline(bundle, backend, precision="fp32", sentinel=False, cuda_graphs=cuda_graphs)
    with open_backend("onnxruntime", threads=1) as reference:
        chain = Pipeline(bundle, reference, precision="fp32", overlap=False)
        # One vocabulary for a while, so that a new batch must set the head's shapes by itself.
        for seed, (pictures, classes) in enumerate([(4, 3), (1, 3), (1, 3), (1, 3), (2, 3), (2, 5), (2, 5), (4, 5)]):
            picture, words = tensors(pictures, classes, seed)
            got, wanted = pipeline.run(SIZE, picture, words), chain.run(SIZE, picture, words)
            assert got.mask_logits.shape[0] == got.class_probabilities.shape[0] == pictures
            np.testing.assert_allclose(got.mask_logits, wanted.mask_logits, atol=1e-5)
            np.testing.assert_allclose(got.class_probabilities, wanted.class_probabilities, atol=1e-5)
    pipeline.close()


def test_more_than_the_profile_names_the_option(dynamic: Path, device: RecordingDevice) -> None:
    backend = TensorRtBackend("tensorrt-rtx", device=device, module=FakeTensorRt(device))
    pipeline = EnginePipeline(Bundle.open(dynamic), backend, precision="fp32", sentinel=False)
    with pytest.raises(BackendError, match=r"image has batch = 5, built for 1 to 4; .* --batch 1:5:5"):
        pipeline.run(SIZE, *tensors(5, 3, 0))
    picture, words = tensors(2, 3, 0)
    with pytest.raises(BackendError, match=r"valid_size is int32 \(1, 2\); give int32 \(2, 2\)"):
        pipeline.run(SIZE, {**picture, "valid_size": picture["valid_size"][:1]}, words)
    pipeline.run(SIZE, picture, words)
    pipeline.close()


def test_a_segmenter_on_engines_runs_short_batches(
    dynamic: Path, labelling_device: RecordingDevice, picture_pixels: np.ndarray
) -> None:
    backend = TensorRtBackend("tensorrt-rtx", device=labelling_device, module=FakeTensorRt(labelling_device))
    pictures = [picture_pixels, picture_pixels[::-1].copy(), picture_pixels[:, ::-1].copy()]
    with Segmenter(Bundle.open(dynamic), backend, sentinel=False) as segmenter:
        found = segmenter.batch(pictures, ["cat", "dog", "sky"])
    with Segmenter.load(dynamic, "onnxruntime") as segmenter:
        for result, picture in zip(found, pictures, strict=True):
            wanted = segmenter(picture, ["cat", "dog", "sky"])
            assert (result.labels == wanted.labels).mean() > 0.999
