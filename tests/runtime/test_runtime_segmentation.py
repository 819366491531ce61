"""What a result tells, draws and writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.contract import Size
from ebseg_deploy.errors import InputError
from ebseg_deploy.runtime.overlay import MAX_LEGEND_ROWS, OPACITY, LegendRow, add_legend, draw_overlay
from ebseg_deploy.runtime.palette import class_colours
from ebseg_deploy.runtime.segmentation import Segmentation
from PIL import Image


def make_result(names: tuple[str, ...] = ("sky", "sea", "sand"), classes: int | None = None) -> Segmentation:
    """Rows of the first class, then of the last: 30 and 10 of 40, 50 columns wide."""
    labels = np.zeros((40, 50), dtype=np.uint8 if len(names) <= 256 else np.uint16)
    labels[30:] = len(names) - 1
    return Segmentation(
        labels=labels,
        names=names,
        palette=class_colours(len(names)),
        picture=np.full((80, 100, 3), 128, dtype=np.uint8),
        canvas=Size(height=64, width=64),
        valid_size=(51, 64),
    )


def test_areas_are_of_the_classes_there_largest_first() -> None:
    assert list(make_result().areas.items()) == [("sky", 0.75), ("sand", 0.25)]


def test_palette_image_holds_the_indices_and_the_colours() -> None:
    result = make_result()
    image = result.label_image()
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), result.labels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[35, 5], result.palette[2])


@pytest.mark.parametrize(("count", "mode"), [(1, "P"), (256, "P"), (257, "I;16"), (847, "I;16")])
def test_saved_labels_read_back(tmp_path: Path, count: int, mode: str) -> None:
    result = make_result(tuple(f"class {i}" for i in range(count)))
    path = result.save(tmp_path, "street", overlay=False)["labels"]
    assert path == tmp_path / "street.labels.png"
    with Image.open(path) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), result.labels)


def test_save_writes_what_was_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = make_result().save(folder, "a.b", overlay=True, summary=True)
    assert sorted(path.name for path in folder.iterdir()) == ["a.b.json", "a.b.labels.png", "a.b.overlay.png"]
    summary = json.loads(paths["summary"].read_text())
    assert summary["size"] == [40, 50]
    assert summary["canvas"] == "64x64"
    assert [(each["index"], each["name"], each["area"]) for each in summary["classes"]] == [
        (0, "sky", 0.75),
        (2, "sand", 0.25),
    ]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match=r"output folder .*out: ") as caught:
        make_result().save(tmp_path / "out", "street")
    assert caught.value.cure


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        make_result().save(tmp_path, "street")
    assert not list(tmp_path.iterdir())


def test_overlay_blends_colours_into_the_picture() -> None:
    result = make_result()
    overlay = np.asarray(result.overlay(legend=False)).astype(int)
    assert overlay.shape == (40, 50, 3)
    np.testing.assert_allclose(overlay[5, 5], OPACITY * result.palette[0] + (1 - OPACITY) * 128, atol=1)
    assert (overlay[29] < 40).all()  # the border between the two classes
    assert (overlay[31] > 40).any()


def test_legend_shows_a_swatch_for_every_class_below_the_picture() -> None:
    result = make_result()
    plain, full = result.overlay(legend=False), result.overlay()
    assert full.height > plain.height
    np.testing.assert_array_equal(np.asarray(full)[: plain.height, : plain.width], np.asarray(plain))
    panel = np.asarray(full)[plain.height :].reshape(-1, 3)
    for index, there in ((0, True), (1, False), (2, True)):
        assert (panel == result.palette[index]).all(axis=1).any() == there
    assert (panel == 0).all(axis=1).any()  # the text


def test_legend_of_many_classes_with_long_names_stays_readable() -> None:
    rows = [LegendRow(index=i, name=f"{'long ' * 40}{i}", colour=(9, 9, 9), area=0.001 * i) for i in range(100)]
    image = add_legend(Image.new("RGB", (200, 100), "red"), rows)
    assert image.height < 100 + 2.5 * 13 * (MAX_LEGEND_ROWS + 2)
    assert image.width < 600


def test_large_overlay_has_larger_text() -> None:
    rows = [LegendRow(index=0, name="sky", colour=(9, 9, 9), area=1.0)]
    small, large = (add_legend(Image.new("RGB", (side, side)), rows).height - side for side in (400, 2000))
    assert large > 2 * small


def test_overlay_takes_the_label_maps_size() -> None:
    picture = np.zeros((10, 10, 3), dtype=np.uint8)
    labels = np.zeros((33, 21), dtype=np.uint16)
    assert draw_overlay(picture, labels, class_colours(300)).size == (21, 33)


class TestPalette:
    def test_a_class_keeps_its_colour(self) -> None:
        for count in (1, 20, 64, 65, 847):
            np.testing.assert_array_equal(class_colours(count), class_colours(3000)[:count])

    @pytest.mark.parametrize(("count", "distance"), [(20, 65), (60, 30), (150, 15)])
    def test_colours_are_far_apart(self, count: int, distance: float) -> None:
        colours = class_colours(count).astype(int)
        distances = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1000 * np.eye(count)
        assert distances.min() > distance

    def test_many_are_distinct_and_none_is_black_white_or_grey(self) -> None:
        colours = class_colours(847).astype(int)
        assert len(np.unique(colours, axis=0)) == 847
        assert (colours.max(axis=1) - colours.min(axis=1) > 25).all()

    def test_more_classes_than_colours(self) -> None:
        assert class_colours(65536).shape == (65536, 3)
