"""Pictures: found, surveyed, summed up, and found again in an evaluation set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.calibration.coverage import coverage, overlap
from ebseg_deploy.calibration.look import NEAR_BITS, bits_apart, content_hash, look_of
from ebseg_deploy.calibration.pictures import CalibrationPicture, open_folder
from ebseg_deploy.calibration.survey import survey
from ebseg_deploy.errors import InputError
from PIL import Image


def scene(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """A picture with large forms and some grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(coarse, np.int16) + rng.integers(-6, 7, (height, width, 3)), 0, 255).astype(np.uint8)


class Scenes:
    """Scenes of given seeds and brightness, with labels."""

    def __init__(self, seeds: list[int], *, labels: bool = False, factor: float = 1.0) -> None:
        self.name = "scenes"
        self.classes = ("sky", "road", "cat") if labels else ()
        self.seeds = seeds
        self.factor = factor

    def __len__(self) -> int:
        return len(self.seeds)

    def title(self, index: int) -> str:
        return f"scene {self.seeds[index]}"

    def picture(self, index: int) -> CalibrationPicture:
        pixels = (scene(self.seeds[index]) * self.factor).astype(np.uint8)
        labels = np.full(pixels.shape[:2], self.seeds[index] % 2) if self.classes else None
        if labels is not None:
            labels[0, 0] = 255
        return CalibrationPicture(name=self.title(index), pixels=pixels, labels=labels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "deep" / "er").mkdir(parents=True)
    Image.fromarray(scene(0)).save(root / "a.png")
    Image.fromarray(scene(1)).save(root / "deep" / "b.JPG", "JPEG")
    Image.fromarray(scene(2)).save(root / "deep" / "er" / "c.webp")
    (root / "notes.txt").write_text("no picture")
    return root


def test_a_folder_is_searched_to_its_depths(folder: Path) -> None:
    found = open_folder(folder)
    titles = {found.title(index) for index in range(len(found))}
    assert titles == {"a.png", "deep/b.JPG", "deep/er/c.webp"}
    assert {found.picture(index).pixels.shape for index in range(3)} == {(120, 160, 3)}


def test_a_limited_survey_takes_from_all_folders_whatever_they_are_called(tmp_path: Path) -> None:
    for place in range(40):
        (tmp_path / f"{place // 20}").mkdir(exist_ok=True)
        Image.fromarray(scene(place, 8, 8)).save(tmp_path / f"{place // 20}" / f"{place:02}.png")
    names = [record.name for record in survey(open_folder(tmp_path), limit=12).records]
    assert names == [record.name for record in survey(open_folder(tmp_path), limit=12).records]
    assert {name.partition("/")[0] for name in names} == {"0", "1"}


def test_pictures_that_cannot_be_read_are_named_and_skipped(folder: Path) -> None:
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "diary.jpg").write_text("Dear diary")
    found = survey(open_folder(folder))
    assert len(found) == 3
    assert len(found.skipped) == 3
    for name in ("empty.png", "cut.png", "diary.jpg"):
        assert sum(name in line for line in found.skipped) == 1
    assert coverage(found).skipped == 3


def test_a_limit_counts_pictures_that_can_be_used(folder: Path) -> None:
    for place in range(20):
        (folder / f"bad{place}.png").write_bytes(b"")
    assert len(survey(open_folder(folder), limit=3)) == 3


def test_the_same_picture_twice_counts_once(folder: Path) -> None:
    (folder / "again.png").write_bytes((folder / "a.png").read_bytes())
    Image.fromarray(scene(0)).save(folder / "other-format.bmp")
    found = survey(open_folder(folder))
    assert len(found) == 3
    assert len(found.duplicates) == 2


def test_no_folder_no_picture_and_none_that_can_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_folder(tmp_path / "none")
    with pytest.raises(InputError, match="no picture in it; pictures end in"):
        open_folder(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none can be used: picture .*empty.png: 0 bytes"):
        survey(open_folder(tmp_path))


def test_a_picture_that_changes_after_the_survey_is_refused(folder: Path) -> None:
    found = survey(open_folder(folder))
    place = next(index for index, record in enumerate(found.records) if record.name == "a.png")
    assert found.pixels(place).tolist() == scene(0).tolist()
    Image.fromarray(scene(5)).save(folder / "a.png")
    with pytest.raises(InputError, match=r"a.png: has changed"):
        found.pixels(place)


def test_identity_is_of_the_pixels_not_the_files(folder: Path, tmp_path: Path) -> None:
    before = survey(open_folder(folder)).identity
    Image.fromarray(scene(0)).save(folder / "a.png", compress_level=1)
    assert survey(open_folder(folder)).identity == before
    Image.fromarray(scene(9)).save(folder / "a.png")
    assert survey(open_folder(folder)).identity != before


def test_content_hash_knows_the_shape() -> None:
    flat = np.zeros((4, 6, 3), np.uint8)
    assert content_hash(flat) != content_hash(flat.reshape(6, 4, 3))
    assert content_hash(scene(1)[::-1]) == content_hash(np.ascontiguousarray(scene(1)[::-1]))


@pytest.mark.parametrize("seed", range(4))
def test_copies_look_alike_and_other_pictures_do_not(seed: int, tmp_path: Path) -> None:
    original = scene(seed)
    Image.fromarray(original).resize((96, 72)).save(tmp_path / "copy.jpg", quality=60)
    copy = np.asarray(Image.open(tmp_path / "copy.jpg"))
    brighter = np.clip(original.astype(np.int16) + 20, 0, 255).astype(np.uint8)
    assert bits_apart(look_of(original), look_of(copy)) <= NEAR_BITS
    assert bits_apart(look_of(original), look_of(brighter)) <= NEAR_BITS
    assert all(bits_apart(look_of(original), look_of(scene(other))) > NEAR_BITS for other in range(10, 60))


def test_flat_pictures_have_no_look() -> None:
    assert look_of(np.full((50, 50, 3), 120, np.uint8)) == ""
    white, black = (np.full((50, 50, 3), value, np.uint8) for value in (255, 0))
    records = [record for value in (white, black) for record in survey_of(value)]
    assert not overlap(records[:1], records[1:])


def survey_of(pixels: np.ndarray):  # type: ignore[no-untyped-def]
    class One(Scenes):
        def picture(self, index: int) -> CalibrationPicture:
            return CalibrationPicture(name="one", pixels=pixels)

    return survey(One([0])).records


def test_overlap_names_the_same_pictures_and_their_copies() -> None:
    calibration = survey(Scenes([0, 1, 2, 3])).records
    copy = np.asarray(Image.fromarray(scene(3)).resize((80, 60)))
    evaluation = [*survey(Scenes([7, 2, 8])).records, *survey_of(copy)]
    found = overlap(calibration, evaluation)
    assert found
    assert found.same == (("scene 2", "scene 2"),)
    assert found.near == (("scene 3", "one"),)
    assert "2 of 4 evaluation pictures were calibrated on, 1 as a resized" in str(found)
    apart = overlap(calibration, survey(Scenes([7, 8])).records)
    assert not apart
    assert "none of 2" in str(apart)


def test_coverage_sums_up() -> None:
    found = coverage(survey(Scenes([0, 1, 2, 4], labels=True)))
    assert found.pictures == 4
    assert (found.height.least, found.width.most, found.aspect.median) == (120, 160, pytest.approx(4 / 3))
    luma = [float((scene(seed) @ [0.299, 0.587, 0.114]).mean()) for seed in (0, 1, 2, 4)]
    assert found.brightness.least == pytest.approx(min(luma), abs=0.05)
    assert found.brightness.median == pytest.approx(np.median(luma), abs=0.05)
    assert sum(found.brightness_thirds) == 4
    assert found.class_pictures == {"sky": 3, "road": 1, "cat": 0}
    assert found.absent_classes == ("cat",)
    assert any("only 4 pictures" in line for line in found.doubts)
    assert any("1 of 3 classes are in no picture: cat" in line for line in found.doubts)


def test_dark_pictures_alone_are_a_doubt() -> None:
    found = coverage(survey(Scenes(list(range(40)), factor=0.3)))
    assert found.brightness_thirds == (40, 0, 0)
    assert any("no medium and no bright picture" in line for line in found.doubts)
    assert coverage(survey(Scenes(list(range(40))))).class_pictures == {}
