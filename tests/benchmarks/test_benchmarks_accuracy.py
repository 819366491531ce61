"""`bench accuracy` on the tiny bundle: figures, the published layouts, resuming, faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from ebseg_deploy import Segmenter
from ebseg_deploy.benchmarks import accuracy
from ebseg_deploy.benchmarks.accuracy import markdown, measure_accuracy, most_confused, near_confusion
from ebseg_deploy.benchmarks.labelled_sets import LAYOUTS, Example, open_folders, read_labels
from ebseg_deploy.cli import ebseg
from ebseg_deploy.errors import InputError
from ebseg_deploy.runtime.class_names import ClassEntry, benchmark_classes
from ebseg_deploy.training.confusion import Confusion
from PIL import Image

NAMES = ("road", "red fox", "sky", "water")


class Blocks:
    """Six pictures of coloured blocks with some truth."""

    name = "blocks"
    source = tuple(ClassEntry(name=name, seen=place != 1) for place, name in enumerate(NAMES))
    ignore: int | None = 255
    background = ("water",)
    near_classes = (("road", "sky"),)
    fingerprint = "blocks"

    def __init__(self, highest: int = 3, side: int = 40) -> None:
        rng = np.random.default_rng(0)
        self.pictures = rng.integers(0, 256, (6, 2, 3, 3), np.uint8).repeat(20, 1).repeat(20, 2)
        self.truth = rng.integers(0, highest + 1, (6, 2, 3)).repeat(side // 2, 1).repeat(20, 2)
        self.truth[:, :3] = 255
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.pictures)

    def example(self, index: int) -> Example:
        self.seen.append(index)
        return Example(name=f"block {index}", picture=self.pictures[index], truth=self.truth[index])


def test_figures_are_those_of_the_segmenters_label_maps(tiny_bundle: Path) -> None:
    blocks = Blocks()
    with Segmenter.load(tiny_bundle) as segmenter:
        vocabulary = segmenter.vocabulary(blocks.source)
        report = measure_accuracy(segmenter, blocks, vocabulary, against=(segmenter, vocabulary))
        expected = Confusion(4)
        for picture, truth in zip(blocks.pictures, blocks.truth, strict=True):
            expected.add(truth, segmenter(picture, vocabulary).labels, 255)
    content = report.as_dict()
    assert content["seen_miou"] == pytest.approx(100 * expected.mean_iou([0, 2]), abs=1e-3)
    assert content["new_miou"] == pytest.approx(100 * expected.mean_iou([1]), abs=1e-3)
    assert content["background_miou"] == pytest.approx(100 * expected.mean_iou([3]), abs=1e-3)
    assert content["pixel_accuracy"] == pytest.approx(100 * expected.pixel_accuracy, abs=1e-3)
    assert [row["pixels"] for row in content["classes"]] == expected.counts.sum(1).tolist()
    assert content["agreement"] == {"pixels": 100, "mean_iou": 100}
    json.dumps(content, allow_nan=False)


def test_a_broken_off_measurement_goes_on(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "SAVE_EVERY", 2)
    state = tmp_path / "state.npz"
    with Segmenter.load(tiny_bundle) as segmenter:
        vocabulary = segmenter.vocabulary(Blocks.source)
        whole = measure_accuracy(segmenter, Blocks(), vocabulary).as_dict()

        def stop(done: int, total: int) -> None:
            if done == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measure_accuracy(segmenter, Blocks(), vocabulary, state=state, progress=stop)
        blocks = Blocks()
        resumed = measure_accuracy(segmenter, blocks, vocabulary, state=state).as_dict()
        assert blocks.seen == [4, 5]
        assert resumed == whole
        assert not state.exists()
        with pytest.raises(KeyboardInterrupt):
            measure_accuracy(segmenter, Blocks(), vocabulary, state=state, progress=stop)
        other = Blocks()
        other.fingerprint = "other blocks"
        measure_accuracy(segmenter, other, vocabulary, state=state)
        assert other.seen == list(range(6))


def test_a_damaged_state_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.npz"
    state.write_bytes(b"PK\x03\x04 cut off")
    with Segmenter.load(tiny_bundle) as segmenter:
        vocabulary = segmenter.vocabulary(Blocks.source)
        with pytest.raises(InputError, match="damaged state"):
            measure_accuracy(segmenter, Blocks(), vocabulary, state=state)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (Blocks(highest=9), r"block 0: label \d in the truth, wanted below 4 or 255"),
        (Blocks(side=20), r"block 0: labels of \(20, 60\), its picture is \(40, 60\)"),
    ],
    ids=["label", "size"],
)
def test_truth_that_does_not_fit(tiny_bundle: Path, blocks: Blocks, message: str) -> None:
    with Segmenter.load(tiny_bundle) as segmenter:
        vocabulary = segmenter.vocabulary(blocks.source)
        with pytest.raises(InputError, match=message):
            measure_accuracy(segmenter, blocks, vocabulary)


def test_confusions() -> None:
    counts = np.array([[6, 3, 1], [0, 10, 0], [5, 0, 5]])
    names = ("a", "b", "c")
    assert near_confusion(counts, names, ("a", "b", "not here")).percent == pytest.approx(100 * 3 / 20)
    pairs = most_confused(counts, names)
    assert [(pair.truth, pair.given, pair.percent) for pair in pairs] == [
        ("c", "a", pytest.approx(50)), ("a", "b", pytest.approx(30)), ("a", "c", pytest.approx(10)),
    ]  # fmt: skip


def write_benchmark(root: Path, name: str, pictures: int = 2) -> int:
    """Fixtures of exactly the published layout; returns the number of classes."""
    layout, classes = LAYOUTS[name], len(benchmark_classes(name))
    (root / layout.images).mkdir(parents=True)
    (root / layout.labels).mkdir(parents=True)
    rng = np.random.default_rng(2)
    sixteen = layout.ignore > 255
    for index in range(pictures):
        picture = rng.integers(0, 256, (2, 3, 3), np.uint8).repeat(20, 0).repeat(20, 1)
        truth = rng.integers(0, classes, (2, 3)).repeat(20, 0).repeat(20, 1)
        truth[0, 0] = classes - 1
        truth[:4] = layout.ignore
        Image.fromarray(picture).save(root / layout.images / f"{index:03}.jpg")
        labels = Image.fromarray(truth.astype(np.uint16 if sixteen else np.uint8))
        labels.save(root / layout.labels / f"{index:03}{'.tif' if name == 'ade20k-847' else '.png'}")
    return classes


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts(tmp_path: Path, name: str) -> None:
    classes = write_benchmark(tmp_path, name)
    examples = open_folders(name, tmp_path)
    assert len(examples) == 2
    confusion = Confusion(classes)
    for index in range(2):
        truth = examples.example(index).truth
        confusion.add(truth, np.where(truth == examples.ignore, 0, truth), examples.ignore)
    assert confusion.pixel_accuracy == 1
    assert confusion.counts.sum() == 2 * 36 * 60


@pytest.mark.parametrize("name", ["voc-20", "ade20k-847"])
def test_the_command_on_a_published_layout(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    write_benchmark(tmp_path / "data", name)
    out = tmp_path / "out"
    words = ["bench", "accuracy", tiny_bundle, "--dataset", name, "--data", tmp_path / "data", "-o", out, "--json"]
    result = CliRunner().invoke(ebseg, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    assert content == json.loads((out / "accuracy.json").read_text())
    assert content["pictures"] == 2
    assert 0 <= content["seen_miou"] <= 100
    assert (content["new_miou"] is None) == (name == "voc-20")  # VOC's classes are all seen
    assert (out / "accuracy.md").read_text().startswith("| data set |")
    assert sorted(path.name for path in out.iterdir()) == ["accuracy.json", "accuracy.md"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("unknown", "data set 'ade' is not known"),
        ("nowhere", "voc-20: no folder"),
        ("empty", "no .jpg or .png"),
        ("unlabelled", "001.jpg has no label file"),
        ("coloured", "wanted one channel"),
        ("text", "not an image Pillow can read"),
    ],
)
def test_faults_of_folders(tmp_path: Path, fault: str, message: str) -> None:
    write_benchmark(tmp_path, "voc-20")
    layout = LAYOUTS["voc-20"]
    name, root = "voc-20", tmp_path
    if fault == "unknown":
        name = "ade"
    elif fault == "nowhere":
        root = tmp_path / "nowhere"
    elif fault == "empty":
        for path in (tmp_path / layout.images).iterdir():
            path.unlink()
    label = tmp_path / layout.labels / "001.png"
    if fault == "unlabelled":
        label.unlink()
    elif fault == "coloured":
        Image.new("RGB", (60, 40)).save(label)
    elif fault == "text":
        label.write_text("no image")
    with pytest.raises(InputError, match=message):
        read_labels(open_folders(name, root).pairs[1][1])


def test_markdown(tiny_bundle: Path) -> None:
    with Segmenter.load(tiny_bundle) as segmenter:
        blocks = Blocks()
        report = measure_accuracy(segmenter, blocks, segmenter.vocabulary(blocks.source))
    text = markdown([report])
    assert "| blocks | 6 |" in text
    assert "| red fox | no |" in text
    assert "| water | background |" in text
