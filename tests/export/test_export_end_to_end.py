"""The main job, through the real command line: checkpoint, bundle, vocabulary, picture, label map.

Seeded EBSeg-B weights become a published-style `.pth`; what `ebseg segment` writes must be the golden label map.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.model.checkpoint import save_checkpoint
from ebseg_deploy.model.ebseg import EBSeg
from ebseg_deploy.runtime.vocabulary import Vocabulary
from golden_files import coarse_margin, golden
from PIL import Image
from tolerances import GOLDEN_MARGIN, LABELS_DIFFERING, TEXT_EMBEDDINGS

SIZE = "480x640"


def ebseg(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "ebseg_deploy", *arguments], cwd=folder, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


@pytest.fixture(scope="module")
def workplace(seeded_b: EBSeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights, the bundle and the picture."""
    folder = tmp_path_factory.mktemp("main-job")
    save_checkpoint(seeded_b, folder / "w.pth")
    Image.fromarray(golden(SIZE)["image"]).save(folder / "picture.png")
    ebseg(folder, "export", "--model", "ebseg-b", "--checkpoint", "w.pth", "--size", SIZE, "-o", "b.ebseg")
    (folder / "w.pth").unlink()
    return folder


@pytest.fixture(scope="module")
def vocabulary(workplace: Path) -> Path:
    ebseg(workplace, "vocab", "build", "b.ebseg", "--dataset", "voc-20", "-o", "voc.safetensors")
    return workplace / "voc.safetensors"


def test_vocabulary_is_the_goldens(vocabulary: Path) -> None:
    built = Vocabulary.load(vocabulary)
    assert list(built.names) == golden(SIZE)["classes"].tolist()
    np.testing.assert_array_equal(built.seen, golden(SIZE)["overlap"] == 1)
    np.testing.assert_allclose(built.text_embeddings, golden(SIZE)["text_weight"], rtol=0, atol=TEXT_EMBEDDINGS)


def test_label_map_is_the_goldens(workplace: Path, vocabulary: Path) -> None:
    output = ebseg(workplace, "segment", "b.ebseg", "picture.png", "-v", vocabulary.name, "-o", "out", "--json")
    with Image.open(workplace / "out" / "picture.labels.png") as image:
        labels = np.asarray(image)
    expected = golden(SIZE)["labels"]
    assert labels.dtype == np.uint8
    differs = labels != expected
    assert differs.mean() <= LABELS_DIFFERING
    assert coarse_margin(differs, SIZE) <= GOLDEN_MARGIN
    (entry,) = json.loads(output)["pictures"]
    assert entry["canvas"] == SIZE
    for found in entry["classes"]:
        assert found["name"] == golden(SIZE)["classes"][found["index"]]
        assert found["area"] == pytest.approx(float((labels == found["index"]).mean()), abs=1e-6)


def test_bundle_verifies(workplace: Path) -> None:
    report = json.loads(ebseg(workplace, "verify", "b.ebseg", "--json"))
    assert report["passed"] is True
    assert {output["size"] for output in report["outputs"]} == {SIZE}
