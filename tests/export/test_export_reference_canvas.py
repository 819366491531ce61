"""On a canvas of the published test size, a bundle gives what the published code gives for the picture itself.

The published pipeline resizes the shorter side to 640 (Pillow, bilinear), pads to a multiple of 32, and resizes the
masks to the picture: for a 4:3 picture 640x853 on a canvas of 640x864. Weights are a tiny model's; sizes are real.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ebseg_deploy.contract import Size
from ebseg_deploy.export.bundle_writer import ExportConfig, export_bundle
from ebseg_deploy.model.ebseg import EBSeg
from ebseg_deploy.model.reference import dense_label_map, segment_in_published_order
from ebseg_deploy.runtime.segmenter import Segmenter
from PIL import Image
from tiny_models import tiny_model

PICTURE = (300, 400)
RESIZED = (640, 853)


@pytest.fixture(scope="module")
def model() -> EBSeg:
    return tiny_model("tiny-b")


@pytest.fixture(scope="module")
def bundle(model: EBSeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "tiny.ebseg"
    export_bundle(model, path, ExportConfig(sizes=(Size(height=640, width=864),)), provenance={})
    return path


def test_labels_and_scores_are_the_published_ones(model: EBSeg, bundle: Path) -> None:
    small = np.random.default_rng(5).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    picture = Image.fromarray(small).resize(PICTURE[::-1], Image.Resampling.BICUBIC)
    with Segmenter.load(bundle) as segmenter:
        words = segmenter.vocabulary(["road", "car", "tree", "sky", "red fox"], cache=False)
        result = segmenter(picture, words, scores=True)
    assert str(result.canvas) == "640x864"
    assert result.valid_size == RESIZED

    resized = np.asarray(picture.resize(RESIZED[::-1], Image.Resampling.BILINEAR))
    text, seen = torch.from_numpy(np.array(words.text_embeddings)), torch.from_numpy(np.array(words.seen_flags))
    published = segment_in_published_order(model, torch.from_numpy(resized.copy()).permute(2, 0, 1), text, seen)
    masks, probabilities = published.predictions[-1]["masks"][0], published.class_probabilities[0]
    labels, scores = dense_label_map(masks, probabilities, RESIZED, PICTURE)

    assert result.scores is not None
    assert np.abs(result.scores - scores.numpy()).max() < 1e-3 * float(scores.max())
    differing = result.labels != labels.numpy()
    best = scores.topk(2, dim=0).values
    lead = (best[0] - best[1]).numpy()
    assert differing.mean() < 2e-4
    assert lead[differing].max(initial=0.0) < 1e-3 * float(scores.max())
    assert len(np.unique(result.labels)) > 1  # a label map of one class would agree with anything
