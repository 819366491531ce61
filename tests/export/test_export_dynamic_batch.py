"""A bundle whose runs take any number of pictures up to its batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from ebseg_deploy import Segmenter
from ebseg_deploy.cli import ebseg
from ebseg_deploy.contract import graph_spec
from ebseg_deploy.export.bundle_writer import ExportConfig, export_bundle
from ebseg_deploy.runtime.backends import open_backend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.pipeline import Pipeline
from ebseg_deploy.runtime.verify import read_reference, verify_bundle
from tiny_bundles import TINY_SIZES, write_tiny_bundle
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory, exported: Bundle) -> Bundle:
    """The first canvas of `exported` with a dynamic batch of up to 4."""
    config = ExportConfig(sizes=exported.sizes[:1], batch=4, dynamic_batch=True, threads=1)
    folder = tmp_path_factory.mktemp("dynamic") / "tiny-b.ebseg"
    return export_bundle(tiny_model("tiny-b"), folder, config, provenance={"weights": "seeded"})


@pytest.mark.slow
def test_its_borders_name_the_batch(dynamic: Bundle, exported: Bundle) -> None:
    assert (dynamic.manifest.batch, dynamic.dynamic_batch, exported.dynamic_batch) == (4, True, False)
    for record in dynamic.manifest.graphs:
        assert record.spec == graph_spec(record.name, dynamic.model, record.size, batch="batch")
        assert (record.spec.inputs[0].shape[0] == "batch") == (record.name != "text_encoder")


@pytest.mark.slow
def test_each_picture_is_what_it_is_in_a_fixed_batch(dynamic: Bundle, exported: Bundle) -> None:
    """One to three pictures give, picture by picture, what the bundle of a fixed batch gives."""
    random, size = np.random.default_rng(0), dynamic.sizes[0]
    images = random.integers(0, 256, (3, 3, size.height, size.width), dtype=np.uint8)
    valid = np.array([[64, 96], [40, 90], [64, 33]], np.int32)
    words = random.normal(size=(6, dynamic.model.embedding_dim)).astype(np.float32)
    vocabulary = {"text_embeddings": words / np.linalg.norm(words, axis=1, keepdims=True), "seen": np.ones(5, "f4")}
    with open_backend("onnxruntime", threads=1) as backend:
        free, fixed = (Pipeline(bundle, backend, precision="fp32", overlap=False) for bundle in (dynamic, exported))
        wanted = []
        for pair in ((0, 1), (2, 2)):
            wanted.append(fixed.run(size, {"image": images[[*pair]], "valid_size": valid[[*pair]]}, vocabulary))
        for rows in ((0,), (0, 1), (0, 1, 2)):
            got = free.run(size, {"image": images[[*rows]], "valid_size": valid[[*rows]]}, vocabulary)
            assert len(got.mask_logits) == len(got.class_probabilities) == len(rows)
            for row in rows:
                reference = wanted[row // 2]
                np.testing.assert_allclose(got.mask_logits[row], reference.mask_logits[row % 2], atol=2e-3)
                np.testing.assert_allclose(
                    got.class_probabilities[row], reference.class_probabilities[row % 2], atol=2e-3
                )


@pytest.mark.slow
def test_it_verifies_on_one_picture(dynamic: Bundle) -> None:
    reference = read_reference(dynamic, dynamic.manifest.references[0])
    assert len(reference["image"]) == len(reference["expected.mask_logits"]) == 1
    with open_backend("onnxruntime", threads=1) as backend:
        assert all(output.passed for output in verify_bundle(dynamic, backend))


def test_a_short_batch_runs_short(tmp_path: Path, picture_pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_bundle(tmp_path / "t.ebseg", batch=4, dynamic_batch=True, sizes=TINY_SIZES[:1])
    runs = []
    run = Pipeline.run

    def counted(self: Pipeline, canvas: object, picture: dict[str, np.ndarray], words: object) -> object:
        runs.append(len(picture["image"]))
        return run(self, canvas, picture, words)  # type: ignore[arg-type]

    monkeypatch.setattr(Pipeline, "run", counted)
    with Segmenter.load(folder, "onnxruntime") as segmenter:
        results = segmenter.batch([picture_pixels] * 5, ["cat", "dog"])
    assert runs == [4, 1]
    for result in results[1:]:
        np.testing.assert_array_equal(result.labels, results[0].labels)


def test_one_picture_is_no_range(tmp_path: Path) -> None:
    words = ["export", "--model", "ebseg-b", "--seeded", "--dynamic-batch", "-o", str(tmp_path / "b.ebseg")]
    outcome = CliRunner().invoke(ebseg, words)
    assert outcome.exit_code == 1
    assert "--dynamic-batch: 1 picture at most is no range; give the most, as --batch 8" in outcome.stderr
