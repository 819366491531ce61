"""Which pictures are meant, and what their outputs are called."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from ebseg_deploy.cli.pictures import find_pictures, output_stems
from ebseg_deploy.errors import InputError


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/{b.jpg, a.PNG, notes.txt, sub/c.jpg}; the working folder is the one above."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.jpg", "a.PNG", "notes.txt", "sub/c.jpg"):
        (folder / name).touch()
    monkeypatch.chdir(tmp_path)
    return folder


def names(pictures: list[Path]) -> list[str]:
    return [path.name for path in pictures]


@pytest.mark.usefixtures("photos")
def test_a_folder_gives_its_own_pictures_by_name() -> None:
    assert names(find_pictures(["photos"])) == ["a.PNG", "b.jpg"]


@pytest.mark.usefixtures("photos")
def test_a_glob_goes_deeper() -> None:
    assert names(find_pictures(["photos/**/*.jpg"])) == ["b.jpg", "c.jpg"]


@pytest.mark.usefixtures("photos")
def test_a_file_named_outright_may_be_called_anything() -> None:
    assert names(find_pictures(["photos/notes.txt"])) == ["notes.txt"]


@pytest.mark.usefixtures("photos")
def test_a_picture_given_twice_is_taken_once_where_it_came_first() -> None:
    assert names(find_pictures(["photos/b.jpg", "photos", "photos/../photos/b.jpg"])) == ["b.jpg", "a.PNG"]


def test_lists_come_from_files_and_stdin(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("list.txt").write_text("photos/b.jpg\n\n  photos/missing.jpg \n")
    monkeypatch.setattr("sys.stdin", io.StringIO("photos/a.PNG\n"))
    assert names(find_pictures(["@list.txt", "-"])) == ["b.jpg", "missing.jpg", "a.PNG"]


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("argument", ["nowhere.jpg", "photos/*.webp", "@nolist.txt", "@photos/a.PNG", "empty", "-"])
def test_what_names_no_picture_is_an_error(argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir()
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(InputError, match=argument.lstrip("@").replace("*", r"\*")) as caught:
        find_pictures([argument])
    assert caught.value.cure


@pytest.mark.parametrize(
    ("pictures", "stems"),
    [
        (["a.jpg", "b.jpg"], ["a", "b"]),
        (["a.jpg", "a.png", "b.png"], ["a.jpg", "a.png", "b"]),
        (["x/day/a.jpg", "x/night/a.jpg"], ["day_a.jpg", "night_a.jpg"]),
        (["A.jpg", "a.jpg"], ["root_A.jpg-1", "root_a.jpg-2"]),
        (["x/1/i/a.jpg", "x/2/i/a.jpg", "x/2/i/a.png"], ["1_i_a.jpg", "2_i_a.jpg", "a.png"]),
        (["a_b/c.jpg", "a/b_c.jpg", "b_c.jpg"], ["c", "a_b_c.jpg", "root_b_c.jpg"]),
    ],
)
def test_no_two_pictures_share_an_output(pictures: list[str], stems: list[str]) -> None:
    assert output_stems([Path("/root") / each for each in pictures]) == stems
