"""`ebseg segment` and `ebseg compare` over the tiny bundle, from the command line to the files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from ebseg_deploy import Segmenter
from ebseg_deploy.cli import ebseg
from ebseg_deploy.errors import InputError
from ebseg_deploy.runtime.segmentation import Segmentation
from PIL import Image

CLASSES = "road, red fox, sky, a tree, water"


def run(*words: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(ebseg, [str(word) for word in words], input=stdin)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_label_map_is_the_segmenters(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "deep"
    outcome = run("segment", tiny_bundle, picture, "--classes", CLASSES, "-o", out)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stderr == ""
    assert files(out) == ["blocks.labels.png", "blocks.overlay.png"]
    with Segmenter.load(tiny_bundle) as segmenter:
        expected = segmenter(picture, CLASSES.split(", "))
    with Image.open(out / "blocks.labels.png") as labels:
        assert labels.mode == "P"
        assert labels.getpalette()[: 3 * len(expected.names)] == expected.palette.ravel().tolist()
        np.testing.assert_array_equal(np.asarray(labels), expected.labels)
    assert len(expected.areas) > 1, "a picture of one class would test little"
    with Image.open(out / "blocks.overlay.png") as overlay:
        assert overlay.height > 60, "the legend stands below the picture"
    largest, area = next(iter(expected.areas.items()))
    line = rf"blocks\.labels\.png  canvas 64x96  \d+\.\d\d s  {largest} {100 * area:.0f} %"
    assert re.search(line, outcome.stdout)


def test_json_names_everything_that_was_written(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    outcome = run("segment", tiny_bundle, picture, "--classes", CLASSES, "-o", tmp_path / "out", "--json")
    answer = json.loads(outcome.stdout)
    assert answer["names"] == CLASSES.split(", ")
    assert (answer["model"], answer["precision"], answer["backend"]) == ("ebseg-tiny", "fp32", "onnxruntime")
    assert answer["failed"] == []
    (entry,) = answer["pictures"]
    assert entry["picture"] == str(picture)
    assert Path(entry["labels"]).is_file()
    assert Path(entry["overlay"]).is_file()
    assert (entry["size"], entry["canvas"], entry["valid_size"]) == ([60, 90], "64x96", [64, 96])
    assert sum(each["area"] for each in entry["classes"]) == pytest.approx(1)
    with Image.open(entry["labels"]) as labels:
        counts = np.bincount(np.asarray(labels).ravel(), minlength=5) / (60 * 90)
    assert {each["index"]: each["area"] for each in entry["classes"]} == pytest.approx(
        {i: part for i, part in enumerate(counts) if part}
    )


@pytest.mark.parametrize(
    "options", [{}, {"overlap": False}, {"sentinel": False}, {"overlap": False, "sentinel": False}]
)
def test_encoders_one_after_the_other_and_no_sentinel_if_asked(
    tiny_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]
) -> None:
    made: list[dict[str, bool]] = []
    init = Segmenter.__init__

    def note(self: Segmenter, *arguments: object, **given: bool) -> None:
        made.append({name: given[name] for name in ("overlap", "sentinel")})
        init(self, *arguments, **given)

    monkeypatch.setattr(Segmenter, "__init__", note)
    words = [f"--no-{name}" for name in options]
    outcome = run("segment", tiny_bundle, picture, "--classes", CLASSES, "-o", tmp_path / "out", *words)
    assert outcome.exit_code == 0, outcome.output
    assert made == [{"overlap": True, "sentinel": True, **options}]


def test_a_line_of_json_for_each_picture_as_it_is_done(
    tiny_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    other = picture.with_name("other.png")
    other.write_bytes(picture.read_bytes())
    done: list[int] = []
    save = Segmentation.save

    def note(self: Segmentation, *arguments: object, **options: object) -> dict[str, Path]:
        done.append(len(printed))
        return save(self, *arguments, **options)

    printed: list[str] = []
    monkeypatch.setattr("ebseg_deploy.cli.tables.print", lambda line, flush: printed.append(line), raising=False)
    monkeypatch.setattr(Segmentation, "save", note)
    pictures = (picture, broken, other)
    outcome = run("segment", tiny_bundle, *pictures, "--classes", CLASSES, "-o", tmp_path / "out", "--json-lines")
    assert outcome.exit_code == 1
    assert outcome.stdout == ""
    first, second, third = (json.loads(line) for line in printed)
    assert done == [0, 2], "a picture's line comes before the next picture is written"
    assert not any("\n" in line for line in printed)
    assert (first["picture"], third["picture"]) == (str(picture), str(other))
    assert Path(first["labels"]).is_file()
    assert first["classes"] == third["classes"]
    assert second["picture"] == str(broken)
    assert "broken.png" in second["error"]


def test_json_and_json_lines_together(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    outcome = run("segment", tiny_bundle, picture, "--classes", CLASSES, "-o", tmp_path, "--json", "--json-lines")
    assert outcome.exit_code == 2
    assert "give one of --json and --json-lines" in outcome.stderr


def test_beyond_256_classes_labels_have_sixteen_bits(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {i}" for i in range(300)))
    outcome = run("segment", tiny_bundle, picture, "-v", names, "-o", tmp_path / "out", "--no-overlay", "--json")
    assert outcome.exit_code == 0, outcome.output
    assert files(tmp_path / "out") == ["blocks.labels.png"]
    with Image.open(tmp_path / "out" / "blocks.labels.png") as labels:
        assert labels.mode.startswith("I")
        found = set(np.unique(np.asarray(labels)).tolist())
    assert found == {each["index"] for each in json.loads(outcome.stdout)["pictures"][0]["classes"]}


def test_all_ways_to_name_a_vocabulary_agree(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    built, listed = tmp_path / "voc.safetensors", tmp_path / "names.json"
    listed.write_text(json.dumps(CLASSES.split(", ")))
    assert run("vocab", "build", tiny_bundle, "--classes", CLASSES, "-o", built).exit_code == 0
    maps = []
    for i, words in enumerate([("--classes", CLASSES), ("--vocabulary", built), ("-v", listed)]):
        assert run("segment", tiny_bundle, picture, *words, "-o", tmp_path / str(i)).exit_code == 0
        maps.append((tmp_path / str(i) / "blocks.labels.png").read_bytes())
    assert maps[0] == maps[1] == maps[2]


def test_a_benchmarks_name_is_a_vocabulary(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    outcome = run("segment", tiny_bundle, picture, "--dataset", "voc-20", "-o", tmp_path / "out", "--json")
    assert len(json.loads(outcome.stdout)["names"]) == 20


def test_output_size_and_resize_never(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    common = ("segment", tiny_bundle, picture, "--classes", CLASSES, "--json", "-o", tmp_path / "out")
    entry = json.loads(run(*common, "--output-size", "31x17", "--resize", "never").stdout)["pictures"][0]
    assert (entry["size"], entry["valid_size"]) == ([31, 17], [60, 90])


def test_pictures_from_folder_list_and_stdin_do_not_overwrite_each_other(
    tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    for name in ("day/a.png", "night/a.png", "night/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture.read_bytes())
    out = tmp_path / "out"
    words = (tmp_path / "night", "-", "--classes", CLASSES, "-o", out, "--no-overlay")
    outcome = run("segment", tiny_bundle, *words, stdin=f"{tmp_path / 'day/a.png'}\n")
    assert outcome.exit_code == 0, outcome.output
    assert files(out) == ["b.labels.png", "day_a.png.labels.png", "night_a.png.labels.png"]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_bad_picture_among_many_is_named_and_the_others_done(
    make_tiny_bundle: Callable[..., Path], picture: Path, tmp_path: Path, batch: int
) -> None:
    bundle = make_tiny_bundle(batch=batch)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "c.png"):
        (photos / name).write_bytes(picture.read_bytes())
    (photos / "b.png").write_bytes(picture.read_bytes()[:-40])
    outcome = run("segment", bundle, photos, "--classes", CLASSES, "-o", tmp_path / "out", "--json")
    assert outcome.exit_code == 1
    first, last = outcome.stderr.splitlines()
    assert first.startswith(f"error: picture {photos / 'b.png'}: ")
    assert last == "error: 1 of 3 pictures failed, the others are done"
    answer = json.loads(outcome.stdout)
    assert [Path(each["picture"]).name for each in answer["pictures"]] == ["a.png", "c.png"]
    assert answer["failed"] == [{"picture": str(photos / "b.png"), "error": first.removeprefix("error: ")}]
    assert files(tmp_path / "out") == [f"{s}.{kind}.png" for s in "ac" for kind in ("labels", "overlay")]


def test_an_error_without_the_pictures_name_gets_it(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "large.png")
    words = ("--classes", CLASSES, "-o", tmp_path / "out", "--resize", "never")
    outcome = run("segment", tiny_bundle, tmp_path / "large.png", *words)
    assert outcome.exit_code == 1
    assert outcome.stderr.startswith(f"error: picture {tmp_path / 'large.png'}: ")
    assert outcome.stderr.count("\n") == 1


def test_doubtful_names_are_told_on_stderr(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    outcome = run("segment", tiny_bundle, picture, "--classes", "cat, cats, road", "-o", tmp_path / "out", "--json")
    assert outcome.exit_code == 0
    assert outcome.stderr.startswith("warning: ")
    json.loads(outcome.stdout)


def test_a_failing_write_ends_the_run(
    tiny_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Segmentation, folder: Path, stem: str, **how: object) -> None:
        raise InputError(f"output folder {folder}: No space left on device", cure="choose another folder")

    monkeypatch.setattr(Segmentation, "save", full)
    outcome = run("segment", tiny_bundle, picture, "--classes", CLASSES, "-o", tmp_path / "out")
    assert outcome.exit_code == 1
    assert (
        outcome.stderr == f"error: output folder {tmp_path / 'out'}: No space left on device; choose another folder\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--classes", "a", "--dataset", "voc-20"),
        ("--classes", "a", "--output-size", "12"),
        ("--classes", "a", "--output-size", "0x5"),
        ("--classes", "a", "--resize", "often"),
        ("--classes", "a", "--threads", "0"),
    ],
)
def test_wrong_usage(tiny_bundle: Path, picture: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    outcome = run("segment", tiny_bundle, picture, *words, "-o", tmp_path / "out")
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("Usage: ebseg segment")


def test_the_same_bundle_agrees_with_itself(tiny_bundle: Path, picture: Path) -> None:
    outcome = run("compare", tiny_bundle, tiny_bundle, picture, "--classes", CLASSES, "--json", "--fail-under", "100")
    assert outcome.exit_code == 0, outcome.output
    answer = json.loads(outcome.stdout)
    assert (answer["pixels"], answer["pixel_agreement"], answer["mean_iou"]) == (5400, 1.0, 1.0)


def test_other_weights_agree_less_and_by_how_much(
    tiny_bundle: Path, make_tiny_bundle: Callable[..., Path], picture: Path
) -> None:
    other = make_tiny_bundle(seed=1)
    outcome = run("compare", tiny_bundle, other, picture, "--classes", CLASSES, "--json", "--fail-under", "100")
    answer = json.loads(outcome.stdout)
    maps = []
    for bundle in (tiny_bundle, other):
        with Segmenter.load(bundle) as segmenter:
            maps.append(segmenter(picture, CLASSES.split(", ")).labels)
    assert answer["pixel_agreement"] == pytest.approx(float((maps[0] == maps[1]).mean()))
    assert answer["pixel_agreement"] < 1
    assert outcome.exit_code == 1
    assert "of the pixels agree, wanted 100 %" in outcome.stderr


def test_compare_prints_tables_and_counts_bad_pictures(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").touch()
    outcome = run("compare", tiny_bundle, tiny_bundle, picture, tmp_path / "bad.png", "--classes", CLASSES)
    assert outcome.exit_code == 1
    assert "all together" in outcome.stdout
    assert "100.00 %" in outcome.stdout
    assert outcome.stderr.splitlines()[-1] == "error: 1 of 2 pictures failed, the others are done"


def test_compare_answers_in_json_even_if_no_picture_could_be_used(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    words = ("--classes", CLASSES, "--json", "--fail-under", "50")
    outcome = run("compare", tiny_bundle, tiny_bundle, tmp_path / "bad.png", *words)
    assert outcome.exit_code == 1
    answer = json.loads(outcome.stdout)
    assert answer["pictures"] == []
    assert answer["pixel_agreement"] is None
    assert "0 bytes" in answer["failed"][0]["error"]


def test_compare_tells_of_failed_pictures_and_of_too_little_agreement(
    tiny_bundle: Path, make_tiny_bundle: Callable[..., Path], picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    words = ("--classes", CLASSES, "--fail-under", "100")
    outcome = run("compare", tiny_bundle, make_tiny_bundle(seed=1), picture, tmp_path / "bad.png", *words)
    assert outcome.exit_code == 1
    assert "1 of 2 pictures failed" in outcome.stderr
    assert "wanted 100 %" in outcome.stderr


def test_the_fake_backend_says_that_it_invents(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    arguments = ["segment", str(tiny_bundle), str(picture), "--classes", "road, sky", "--backend", "fake"]
    result = CliRunner().invoke(ebseg, [*arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert "warning: backend fake invents its numbers" in result.stderr
