"""Blocks, and what quantising one of them alone is found to cost."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from ebseg_deploy.calibration.calibrate import CalibrationConfig, calibrate
from ebseg_deploy.calibration.pictures import CalibrationPicture, FolderPictures
from ebseg_deploy.calibration.quantize_bundle import tensors_to_observe
from ebseg_deploy.calibration.ranges import Range, Ranges
from ebseg_deploy.calibration.sensitivity import SensitivityReport, measure_sensitivity
from ebseg_deploy.calibration.sensitivity_blocks import block_of, blocks
from ebseg_deploy.calibration.sensitivity_table import costliest_first, markdown
from ebseg_deploy.calibration.survey import SurveyedPictures
from ebseg_deploy.cli import ebseg
from ebseg_deploy.contract import ADAB_DECODER, CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER
from ebseg_deploy.errors import CalibrationError
from ebseg_deploy.export.precision.recipes import EVERY_PRODUCT, GraphRecipe
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.segmenter import Segmenter
from ebseg_deploy.runtime.vocabulary import Vocabulary
from quantizable_graphs import attention_graph

RECIPE = EVERY_PRODUCT["int8"]
LIMIT = 3


@pytest.fixture(scope="module")
def words(tiny_nano: Bundle) -> Vocabulary:
    with Segmenter.load(tiny_nano, "onnxruntime", threads=1) as segmenter:
        return segmenter.vocabulary(["cat", "river", "brick", "snow"], cache=False, warn=lambda line: None)


@pytest.fixture(scope="module")
def few(surveyed_patchwork: SurveyedPictures) -> SurveyedPictures:
    each = surveyed_patchwork
    return replace(each, places=each.places[:LIMIT], records=each.records[:LIMIT], facts=each.facts[:LIMIT])


@pytest.fixture(scope="module")
def ranges(tiny_nano: Bundle, few: SurveyedPictures) -> Ranges:
    return calibrate(tiny_nano, few, CalibrationConfig(tensors=tensors_to_observe(RECIPE), threads=1))


@pytest.fixture(scope="module")
def report(tiny_nano: Bundle, few: SurveyedPictures, ranges: Ranges, words: Vocabulary) -> SensitivityReport:
    return measure_sensitivity(tiny_nano, RECIPE, ranges, few, words, threads=1)


def test_blocks_are_module_paths_up_to_their_first_number() -> None:
    assert block_of("backbone.blocks.11.mlp.lin1/MatMul") == "backbone.blocks.11"
    assert block_of("attentions.3/MatMul_4") == "attentions.3"
    assert block_of("pixel_decoder/Conv_2") == "pixel_decoder"
    assert block_of("MatMul_7") is None


def test_nameless_products_belong_to_the_next_block() -> None:
    model = ir.from_proto(attention_graph())
    for node in model.graph:
        if node.name == "blocks.0.attn.qkv/MatMul":
            node.name = "MatMul"
    found = blocks(model, GraphRecipe(quantised="int8", attention=True))
    assert found["attentions.0"] == ("MatMul", "attentions.0/MatMul", "attentions.0/MatMul_3", "attentions.0/MatMul_4")


def test_every_graph_and_every_block_has_a_row(report: SensitivityReport) -> None:
    for graph in (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER, ADAB_DECODER):
        rows = [row for row in report.rows if row.graph == graph]
        assert rows[0].block is None
        assert sum(row.products for row in rows[1:]) == rows[0].products
        assert sum(row.macs_share for row in rows[1:]) == pytest.approx(rows[0].macs_share)
    assert {row.block for row in report.rows if row.graph == CLIP_IMAGE_ENCODER} >= {"layers.0", "layers.1", "layers.2"}
    assert all(row.miou is None for row in report.rows)
    assert all(0.5 < row.label_agreement <= 1 for row in report.rows)


def test_the_block_with_a_wrong_scale_stands_first(
    tiny_nano: Bundle, few: SurveyedPictures, ranges: Ranges, words: Vocabulary, report: SensitivityReport
) -> None:
    graphs = []
    for graph in ranges.graphs:
        found = dict(graph.ranges)
        if graph.graph == SAM_IMAGE_ENCODER:
            name = next(name for name in found if name.startswith("gelu"))  # of the first block's feed-forward
            found[name] = Range(low=0.0, high=found[name].amax / 64)
        graphs.append(msgspec.structs.replace(graph, ranges=found))
    wrong = msgspec.structs.replace(ranges, graphs=tuple(graphs))
    only_sam = replace(
        RECIPE, graphs={**RECIPE.graphs, **dict.fromkeys((CLIP_IMAGE_ENCODER, ADAB_DECODER), GraphRecipe())}
    )
    found_report = measure_sensitivity(tiny_nano, only_sam, wrong, few, words, threads=1)
    worst = min((row for row in found_report.rows if row.block), key=lambda row: row.embedding_cosine)
    assert worst.block == "backbone.blocks.0"
    right = next(row for row in report.rows if row.block == "backbone.blocks.0")
    assert worst.embedding_cosine < right.embedding_cosine - 1e-3
    assert {row.graph for row in found_report.rows} == {SAM_IMAGE_ENCODER}


def test_ranges_of_another_bundle_are_refused(
    tiny_nano: Bundle, few: SurveyedPictures, ranges: Ranges, words: Vocabulary
) -> None:
    others = tuple(msgspec.structs.replace(graph, sha256="0" * 64) for graph in ranges.graphs)
    foreign = msgspec.structs.replace(ranges, graphs=others)
    with pytest.raises(CalibrationError, match="measured on another graph"):
        measure_sensitivity(tiny_nano, RECIPE, foreign, few, words, threads=1)


class LabelledPictures:
    """Pictures whose truth is the left half class 0, the right half class 1."""

    classes = ("cat", "river", "brick", "snow")

    def __init__(self, source: FolderPictures) -> None:
        self.name = source.name
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def title(self, index: int) -> str:
        return self._source.title(index)

    def picture(self, index: int) -> CalibrationPicture:
        taken = self._source.picture(index)
        labels = np.zeros(taken.pixels.shape[:2], np.uint8)
        labels[:, labels.shape[1] // 2 :] = 1
        return CalibrationPicture(name=taken.name, pixels=taken.pixels, labels=labels)


def test_with_truth_there_is_miou(tiny_nano: Bundle, few: SurveyedPictures, ranges: Ranges, words: Vocabulary) -> None:
    labelled = replace(few, source=LabelledPictures(few.source))
    none = dict.fromkeys((SAM_IMAGE_ENCODER, ADAB_DECODER), GraphRecipe())
    only_clip = replace(RECIPE, graphs={**RECIPE.graphs, **none})
    found = measure_sensitivity(tiny_nano, only_clip, ranges, labelled, words, background=("snow",), threads=1)
    assert found.miou is not None
    assert 0 <= found.miou <= 1
    assert all(row.miou is not None and abs(row.miou - found.miou) < 0.3 for row in found.rows)


def test_table_has_graphs_first_and_the_costliest_block_above(report: SensitivityReport) -> None:
    rows = costliest_first(report)
    assert [row.block for row in rows[:3]] == [None] * 3
    agreements = [row.label_agreement for row in rows[3:]]
    assert agreements == sorted(agreements)
    assert markdown(report).count("\n|") == len(rows) + 2


def test_command_line(tiny_nano: Bundle, patchwork: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = [
        "sensitivity",
        str(tiny_nano.source),
        "--images",
        str(patchwork),
        "--limit",
        "1",
        "--classes",
        "cat, river",
    ]
    outcome = CliRunner().invoke(ebseg, [*words, "--threads", "1", "-o", str(output), "--json"])
    assert outcome.exit_code == 0, outcome.output
    content = json.loads(outcome.stdout)
    assert content == json.loads((output / "sensitivity.json").read_text())
    assert content["pictures"] == 1
    assert (output / "sensitivity.md").read_text().startswith(f"{tiny_nano.source}: int8-all in one place")


def test_only_the_canvas_that_is_judged_is_calibrated(
    tiny_bundle: Path, patchwork: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[CalibrationConfig] = []

    def note(bundle: Bundle, pictures: SurveyedPictures, config: CalibrationConfig, **more: object) -> Ranges:
        asked.append(config)
        raise CalibrationError("enough", cure="none")

    monkeypatch.setattr("ebseg_deploy.calibration.calibrate.calibrate", note)
    words = ["sensitivity", str(tiny_bundle), "--images", str(patchwork), "--classes", "cat, road"]
    for size in ([], ["--size", "64x96"]):
        assert "enough" in CliRunner().invoke(ebseg, [*words, *size]).stderr
    assert [config.sizes and list(map(str, config.sizes)) for config in asked] == [["64x64"], ["64x96"]]
    outcome = CliRunner().invoke(ebseg, [*words, "--size", "32x32"])
    assert "no canvas 32x32; choose from 64x64, 64x96" in outcome.stderr
    assert len(asked) == 2


def test_a_folder_named_like_the_scenes_is_a_folder(
    tiny_nano: Bundle, patchwork: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(patchwork, tmp_path / "emoji-scenes-of-mine")
    monkeypatch.chdir(tmp_path)
    words = ["sensitivity", str(tiny_nano.source), "--images", "emoji-scenes-of-mine", "--vocabulary", "missing.txt"]
    outcome = CliRunner().invoke(ebseg, words)  # the scenes' own classes would be taken without a look at the file
    assert outcome.exit_code == 1
    assert "missing.txt" in outcome.stderr
