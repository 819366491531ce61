"""A bundle with every kind of block, exported once for all tests of the room, and pictures for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.calibration.pictures import open_folder
from ebseg_deploy.calibration.survey import SurveyedPictures, survey
from ebseg_deploy.contract import Size
from ebseg_deploy.export.bundle_writer import ExportConfig, export_bundle
from ebseg_deploy.runtime.bundle import Bundle
from PIL import Image
from tiny_models import tiny_model


@pytest.fixture(scope="session")
def tiny_nano(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """tiny-nano in FP32 at 64x64; shared: do not change it."""
    return export_bundle(
        tiny_model("tiny-nano"),
        tmp_path_factory.mktemp("tiny-nano") / "tiny.ebseg",
        ExportConfig(sizes=(Size(height=64, width=64),), threads=1),
        provenance={"weights": "seeded"},
    )


@pytest.fixture(scope="session")
def patchwork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six 64x64 pictures made of coloured squares."""
    folder = tmp_path_factory.mktemp("patchwork")
    pixels = np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    for index, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def surveyed_patchwork(patchwork: Path) -> SurveyedPictures:
    return survey(open_folder(patchwork))
