"""A quantised bundle whose calibration pictures are measured on is told of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from ebseg_deploy.benchmarks.calibration_overlap import calibration_overlap
from ebseg_deploy.benchmarks.labelled_sets import LAYOUTS, open_folders
from ebseg_deploy.calibration.calibrate import CalibrationConfig, calibrate
from ebseg_deploy.calibration.pictures import open_folder
from ebseg_deploy.calibration.ranges import CALIBRATION_NAME, write_ranges
from ebseg_deploy.calibration.survey import survey
from ebseg_deploy.cli import ebseg
from ebseg_deploy.contract import SAM_IMAGE_ENCODER
from ebseg_deploy.runtime.bundle import Bundle, read_manifest
from PIL import Image
from tiny_bundles import seal

PICTURES = np.random.default_rng(4).integers(0, 256, (5, 5, 6, 3), np.uint8)


def save(index: int, path: Path, side: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PICTURES[index].repeat(20, 0).repeat(20, 1)).resize((6 * side, 5 * side)).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """VOC's folders with pictures 0, 1 and 2."""
    layout = LAYOUTS["voc-20"]
    root = tmp_path / "data"
    (root / layout.labels).mkdir(parents=True)
    for index in range(3):
        save(index, root / layout.images / f"{index}.png")
        Image.fromarray(np.zeros((100, 120), np.uint8)).save(root / layout.labels / f"{index}.png")
    return root


@pytest.fixture
def calibrated(tiny_bundle_copy: Path, tmp_path: Path) -> Path:
    """A bundle calibrated on picture 1, half of picture 2's size, and two that VOC's folders lack."""
    photos = tmp_path / "photos"
    save(1, photos / "one.bmp")
    save(2, photos / "two.jpg", side=10)
    save(3, photos / "three.png")
    save(4, photos / "four.png")
    ranges = calibrate(
        Bundle.open(tiny_bundle_copy), survey(open_folder(photos)), CalibrationConfig(graphs=(SAM_IMAGE_ENCODER,))
    )
    write_ranges(tiny_bundle_copy / CALIBRATION_NAME, ranges)
    return seal(tiny_bundle_copy, read_manifest(tiny_bundle_copy))


def test_same_pictures_and_copies_are_found(calibrated: Path, data: Path) -> None:
    progress: list[tuple[int, int]] = []
    found = calibration_overlap(
        Bundle.open(calibrated), open_folders("voc-20", data), progress=lambda *figures: progress.append(figures)
    )
    assert found is not None
    assert found.same == (("one.bmp", "1.png"),)
    assert found.near == (("two.jpg", "2.png"),)
    assert progress == [(1, 3), (2, 3), (3, 3)]


def test_a_bundle_that_was_not_calibrated_has_none(tiny_bundle: Path, data: Path) -> None:
    assert calibration_overlap(Bundle.open(tiny_bundle), open_folders("voc-20", data)) is None


def test_the_command_warns(calibrated: Path, tiny_bundle: Path, data: Path) -> None:
    words = ["--dataset", "voc-20", "--data", str(data), "--json"]
    outcome = CliRunner().invoke(ebseg, ["bench", "accuracy", str(calibrated), *words])
    assert outcome.exit_code == 0, outcome.output
    assert "warning: voc-20: 2 of 3 evaluation pictures were calibrated on, 1 as a resized" in outcome.stderr
    assert json.loads(outcome.stdout)["calibration_pictures"] == 2
    plain = CliRunner().invoke(ebseg, ["bench", "accuracy", str(tiny_bundle), *words])
    assert "calibrated on" not in plain.stderr
    assert json.loads(plain.stdout)["calibration_pictures"] is None
