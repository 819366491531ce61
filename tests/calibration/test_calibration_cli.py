"""`ebseg calibrate` through the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from ebseg_deploy.calibration.ranges import read_ranges
from ebseg_deploy.cli import calibration_pictures as source_module
from ebseg_deploy.cli import ebseg
from ebseg_deploy.cli.calibration_pictures import open_pictures
from ebseg_deploy.errors import CalibrationError, InputError
from ebseg_deploy.training.emoji_classes import CLASSES
from PIL import Image


def run(*words: object) -> Result:
    return CliRunner().invoke(ebseg, [str(word) for word in words])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(3).integers(0, 256, (4, 6, 8, 3), np.uint8).repeat(10, 1).repeat(10, 2)
    for index, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{index}.png")
    return folder


def test_writes_ranges_and_says_what_it_saw(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    output = tmp_path / "new" / "ranges.json"
    outcome = run("calibrate", tiny_bundle, "--images", photos, "-o", output, "--no-cache")
    assert outcome.exit_code == 0, outcome.output
    ranges = read_ranges(output)
    assert [(each.graph, str(each.size)) for each in ranges.graphs] == [
        (graph, size)
        for size in ("64x64", "64x96")
        for graph in ("clip_image_encoder", "sam_image_encoder", "adab_decoder")
    ]
    assert len(ranges.pictures) == 4
    assert "4 used, 1 unreadable, 0 twice" in outcome.stdout
    assert "sam_image_encoder" in outcome.stdout
    assert "broken.jpg" in outcome.stderr
    assert "1 pictures skipped, 4 used" in outcome.stderr
    assert "only 4 pictures" in outcome.stderr


def test_json_limit_graph_and_observer(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    words = ("--limit", 2, "--graph", "sam_image_encoder", "--observer", "percentile:99.9", "--no-cache", "--json")
    outcome = run("calibrate", tiny_bundle, "--images", photos, "-o", tmp_path / "r.json", *words)
    assert outcome.exit_code == 0, outcome.output
    content = json.loads(outcome.stdout)
    assert content["observer"] == "percentile:99.9"
    assert content["coverage"]["pictures"] == 2
    assert {each["graph"] for each in content["graphs"]} == {"sam_image_encoder"}
    assert content["overlap"] is None


def test_second_run_uses_the_cache_and_says_so(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    words = ("calibrate", tiny_bundle, "--images", photos)
    first = run(*words, "-o", tmp_path / "1.json")
    again = run(*words, "-o", tmp_path / "2.json")
    assert "found before" not in first.stderr
    assert again.stderr.count("ranges were found before") == 6
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_overlap_with_the_evaluation_is_warned_of(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    Image.open(photos / "2.png").resize((64, 48)).save(others / "thumb.jpg")
    words = ("calibrate", tiny_bundle, "--images", photos, "-o", tmp_path / "r.json", "--graph", "sam_image_encoder")
    outcome = run(*words, "--evaluation", others)
    assert outcome.exit_code == 0
    assert "warning: 1 of 1 evaluation pictures were calibrated on" in outcome.stderr
    assert "thumb.jpg, calibrated on as 2.png" in outcome.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--images", "nowhere"), "no such folder"),
        (("--images", "{empty}"), "no picture in it"),
        (("--images", "{photos}", "--observer", "best"), "observer 'best': unknown"),
        (("--images", "{photos}", "--precision", "int4"), "no precision 'int4'"),
        (("--images", "{photos}", "-o", "{photos}"), "is a folder"),
        (("--images", "emoji-scenes:trian"), "no such split"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tiny_bundle: Path, photos: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    output = tmp_path / "r.json"
    filled = [word.format(photos=photos, empty=tmp_path / "empty") for word in words]
    outcome = run("calibrate", tiny_bundle, "-o", output, *filled)
    assert outcome.exit_code == 1, outcome.output
    assert said in outcome.stderr
    assert outcome.stderr.splitlines()[-1].startswith("error: ")
    assert "; " in outcome.stderr.splitlines()[-1]
    assert not output.exists()


def test_nan_names_layer_and_picture(tiny_bundle_copy: Path, photos: Path, tmp_path: Path) -> None:
    import onnx
    from ebseg_deploy.runtime.bundle import read_manifest
    from tiny_bundles import seal

    file = tiny_bundle_copy / "graphs" / "fp32" / "adab_decoder_64x64.onnx"
    model = onnx.load(file)
    node = next(node for node in model.graph.node if node.op_type == "Sum")
    node.name = "fusion.0/Sum"
    nan = onnx.numpy_helper.from_array(np.full(1, np.nan, np.float32), "planted")
    model.graph.initializer.append(nan)
    node.input.append("planted")
    onnx.save(model, file)
    seal(tiny_bundle_copy, read_manifest(tiny_bundle_copy))
    outcome = run("calibrate", tiny_bundle_copy, "--images", photos, "-o", tmp_path / "r.json")
    assert outcome.exit_code == 1
    assert "graph adab_decoder 64x64: node 'fusion.0/Sum' gives 128 NaN of 128 values" in outcome.stderr
    assert ".png" in outcome.stderr
    assert not (tmp_path / "r.json").exists()


class PaperScene:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    labels = np.full((4, 4), 7, np.uint8)


def test_a_split_of_the_emoji_scenes_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenes themselves have tests of their own; here, that the right ones are asked for, with their truth."""
    asked: list[tuple[str, int]] = []

    class PaperSource:
        def __init__(self, *, sprites: object, split: str) -> None:
            self.split = split

        def scene(self, index: int, config: object) -> PaperScene:
            asked.append((self.split, index))
            return PaperScene()

    monkeypatch.setattr("ebseg_deploy.training.scenes.SceneSource", PaperSource)
    monkeypatch.setattr("ebseg_deploy.training.sprites.load_sprites", lambda cache, artists: artists)
    pictures = open_pictures("emoji-scenes:val", scenes=3)
    assert (pictures.name, len(pictures)) == ("emoji-scenes:val", 3)
    assert list(pictures.classes) == [each.name for each in CLASSES]
    found = pictures.picture(2)
    assert asked == [("val", 2)]
    assert found.name == pictures.title(2) == "scene 2"
    assert found.labels is PaperScene.labels


def test_scenes_that_were_not_fetched_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ebseg train fetch-data"):
        open_pictures("emoji-scenes:train", data=tmp_path)


def test_many_unreadable_pictures_are_not_all_listed(
    tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(source_module.SKIPPED_SHOWN + 4):
        (photos / f"bad{index}.png").write_bytes(b"")
    words = ("calibrate", tiny_bundle, "--images", photos, "-o", tmp_path / "r.json", "--graph", "sam_image_encoder")
    outcome = run(*words)
    assert outcome.exit_code == 0
    assert outcome.stderr.count("0 bytes") == source_module.SKIPPED_SHOWN
    assert "skipped: 4 more pictures" in outcome.stderr


def test_a_ranges_file_that_is_missing_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError):
        read_ranges(tmp_path / "none.json")


def test_activations_that_lose_much_are_warned_of(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    words = ("calibrate", tiny_bundle, "--images", photos, "-o", tmp_path / "r.json", "--graph", "sam_image_encoder")
    assert "clipped by more than" not in run(*words).stderr
    assert "are clipped by more than 5 %" in run(*words, "--observer", "percentile:80").stderr


def test_inspect_shows_a_ranges_file(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    run("calibrate", tiny_bundle, "--images", photos, "-o", output, "--graph", "sam_image_encoder")
    shown = run("inspect", output)
    assert shown.exit_code == 0
    assert "4 of " in shown.stdout
    assert "sam_image_encoder 64x96: the widest 1 of 1 activations" in shown.stdout
    assert "AveragePool" in shown.stdout
    content = json.loads(run("inspect", output, "--json").stdout)
    assert content["kind"] == "ranges"
    assert len(content["graphs"]) == 2
    refused = run("inspect", tiny_bundle / "bundle.json")
    assert refused.exit_code == 1
    assert "; make it again with `ebseg calibrate`" in refused.stderr
