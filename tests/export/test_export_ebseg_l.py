"""EBSeg-L at 640x640, full size, through the real command line, against its own published order of computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ebseg_deploy.model.checkpoint import save_checkpoint
from ebseg_deploy.model.config import EBSEG_L
from ebseg_deploy.model.reference import dense_label_map, segment_in_published_order
from ebseg_deploy.model.seeded import seeded_model
from ebseg_deploy.runtime.vocabulary import Vocabulary
from golden_files import golden
from PIL import Image
from test_export_end_to_end import ebseg
from tolerances import LABELS_DIFFERING

PIXELS = (640, 640)


@pytest.mark.slow
def test_label_map_is_the_published_orders(tmp_path: Path) -> None:
    model = seeded_model(EBSEG_L)
    picture = golden("640x640")["image"]
    Image.fromarray(picture).save(tmp_path / "picture.png")
    save_checkpoint(model, tmp_path / "w.pth")
    ebseg(tmp_path, "export", "--model", "ebseg-l", "--checkpoint", "w.pth", "--size", "640x640", "-o", "l.ebseg")
    ebseg(tmp_path, "vocab", "build", "l.ebseg", "--dataset", "voc-20", "-o", "voc.safetensors")
    ebseg(tmp_path, "segment", "l.ebseg", "picture.png", "-v", "voc.safetensors", "-o", "out")
    with Image.open(tmp_path / "out" / "picture.labels.png") as image:
        labels = np.asarray(image)

    words = Vocabulary.load(tmp_path / "voc.safetensors")
    text, seen = torch.from_numpy(np.array(words.text_embeddings)), torch.from_numpy(np.array(words.seen_flags))
    published = segment_in_published_order(model, torch.from_numpy(picture.copy()).permute(2, 0, 1), text, seen)
    masks, probabilities = published.predictions[-1]["masks"][0], published.class_probabilities[0]
    expected, _ = dense_label_map(masks, probabilities, PIXELS, PIXELS)

    assert (labels != expected.numpy()).mean() <= LABELS_DIFFERING
    assert len(np.unique(labels)) > 1  # a label map of one class would agree with anything
