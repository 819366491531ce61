"""The trained nano in INT8: as right as in FP32, and visibly wrong when one scale is."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from ebseg_deploy.benchmarks.accuracy import AccuracyReport, measure_accuracy
from ebseg_deploy.benchmarks.labelled_sets import EmojiScenes
from ebseg_deploy.calibration import quantize_bundle
from ebseg_deploy.calibration.calibrate import CalibrationConfig, calibrate
from ebseg_deploy.calibration.quantize_bundle import QuantiseConfig, quantise_bundle, tensors_to_observe
from ebseg_deploy.calibration.ranges import Range, Ranges
from ebseg_deploy.calibration.survey import survey
from ebseg_deploy.cli.calibration_pictures import EmojiScenePictures
from ebseg_deploy.contract import CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER
from ebseg_deploy.errors import InputError
from ebseg_deploy.export.precision.derive import DeriveConfig
from ebseg_deploy.export.precision.recipes import recipe_named
from ebseg_deploy.export.run import ExportRequest, export_checkpoint
from ebseg_deploy.runtime import parity
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.segmenter import Segmenter

pytestmark = pytest.mark.slow

SCENES = 24
CONFIG = QuantiseConfig(derive=DeriveConfig(threads=1))


@pytest.fixture(scope="module")
def scenes() -> EmojiScenes:
    try:
        return EmojiScenes(scenes=SCENES)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_checkpoint(ExportRequest(model="ebseg-nano", output=tmp_path_factory.mktemp("nano") / "nano.ebseg"))


@pytest.fixture(scope="module")
def ranges(nano: Bundle, scenes: EmojiScenes) -> Ranges:
    config = CalibrationConfig(
        graphs=(CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER), tensors=tensors_to_observe(recipe_named("int8")), threads=1
    )
    return calibrate(nano, survey(EmojiScenePictures("train", 32)), config)


def measured(bundle: Bundle, against: Bundle, scenes: EmojiScenes) -> AccuracyReport:
    with (
        Segmenter.load(bundle, "onnxruntime", threads=1) as segmenter,
        Segmenter.load(against, "onnxruntime", threads=1) as reference,
    ):
        words, others = (each.vocabulary(scenes.source, warn=lambda line: None) for each in (segmenter, reference))
        return measure_accuracy(segmenter, scenes, words, against=(reference, others))


def test_int8_keeps_labels_and_miou(nano: Bundle, ranges: Ranges, scenes: EmojiScenes, tmp_path: Path) -> None:
    made = quantise_bundle(nano, tmp_path / "int8.ebseg", recipe_named("int8"), CONFIG, ranges=ranges)
    assert made.encoder_share >= 0.9
    found, before = measured(made.bundle, nano, scenes), measured(nano, nano, scenes)
    assert found.agreement is not None
    assert found.agreement.pixel_agreement > 0.985
    # Over 240 scenes the change is within 0.5 points; so few scenes move by more.
    assert abs(found.figures.miou - before.figures.miou) < 0.02


def test_a_corrupted_scale_shows_in_the_labels(
    nano: Bundle, ranges: Ranges, scenes: EmojiScenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the two gates that would stop it, on cosines and on deviations."""

    def corrupted(each: dict[str, Range]) -> dict[str, Range]:
        name = next(name for name in each if name.startswith("layer_norm"))
        return {**each, name: Range(low=0.0, high=each[name].amax / 32)}

    graphs = tuple(
        msgspec.structs.replace(graph, ranges=corrupted(dict(graph.ranges)))
        if graph.graph == CLIP_IMAGE_ENCODER
        else graph
        for graph in ranges.graphs
    )
    monkeypatch.setattr(quantize_bundle, "check_cosines", lambda found: None)
    monkeypatch.setitem(parity.TOLERANCES, "int8", 10.0)  # type: ignore[arg-type]
    wrong = msgspec.structs.replace(ranges, graphs=graphs)
    made = quantise_bundle(nano, tmp_path / "wrong.ebseg", recipe_named("int8"), CONFIG, ranges=wrong)
    found = measured(made.bundle, nano, scenes)
    assert found.agreement is not None
    assert found.agreement.pixel_agreement < 0.97
