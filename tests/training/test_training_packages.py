"""Packages and sprites, with a registry of cardboard: an npm that copies files."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.errors import InputError
from ebseg_deploy.training import sprites
from ebseg_deploy.training.emoji_classes import EmojiClass
from ebseg_deploy.training.emoji_packages import (
    FLUENT,
    NOTO,
    PACKAGES,
    NpmPackage,
    default_cache,
    fetch,
    integrity,
    read_members,
)
from ebseg_deploy.training.unnamed_objects import unnamed_objects
from PIL import Image

THINGS = (EmojiClass(name="dot", emoji="🔴", seen=True), EmojiClass(name="plane", emoji="✈️", seen=False))


def tarball(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NpmPackage:
    """An `npm` on the PATH that packs one package, and counts its calls."""
    folder = tmp_path / "registry"
    folder.mkdir()
    source = tarball(folder / "shapes-1.0.0.tgz", {"icons.json": b"{}"})
    script = folder / "npm"
    script.write_text(f"#!/bin/sh\necho call >> {folder}/calls\ncp {source} . || exit 1\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return NpmPackage(name="shapes", version="1.0.0", integrity=integrity(source), licence="MIT")


def test_fetch_once(registry: NpmPackage, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    lines: list[str] = []
    for _ in range(2):
        (path,) = fetch((registry,), cache, report=lines.append)
    assert path == cache / "shapes-1.0.0.tgz"
    assert (tmp_path / "registry" / "calls").read_text().count("call") == 1
    assert lines == ["shapes 1.0.0: fetching", f"shapes 1.0.0: in {cache}"]
    assert [file.name for file in cache.iterdir()] == ["shapes-1.0.0.tgz"]


def test_a_damaged_tarball_is_fetched_again(registry: NpmPackage, tmp_path: Path) -> None:
    (path,) = fetch((registry,), tmp_path / "cache")
    path.write_bytes(b"cut off")
    fetch((registry,), tmp_path / "cache")
    assert integrity(path) == registry.integrity


def test_another_file_under_the_version_is_refused(registry: NpmPackage, tmp_path: Path) -> None:
    other = NpmPackage(name="shapes", version="1.0.0", integrity="sha512-other", licence="MIT")
    with pytest.raises(InputError, match=r"tarball is sha512-.*wanted sha512-other"):
        fetch((other,), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="needs the npm client"):
        fetch(PACKAGES, tmp_path / "cache")


def test_a_registry_that_does_not_answer(registry: NpmPackage, tmp_path: Path) -> None:
    (tmp_path / "registry" / "shapes-1.0.0.tgz").unlink()
    with pytest.raises(InputError, match="npm pack failed"):
        fetch((registry,), tmp_path / "cache")


def test_cache_folder_is_chosen_by_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EBSEG_DATA", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("EBSEG_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_cache() == tmp_path / "x" / "ebseg-deploy" / "emoji"


def test_members_of_a_tarball(tmp_path: Path) -> None:
    path = tarball(tmp_path / "a.tgz", {"assets/x.txt": b"x", "y.txt": b"y"})
    assert read_members(path, lambda name: name.startswith("assets/")) == {"assets/x.txt": b"x"}


@pytest.fixture
def artists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fluent as pictures, Noto as SVG, of two things: a wide red bar each."""
    picture = Image.new("RGBA", (60, 40))
    picture.paste((255, 0, 0, 255), (10, 10, 50, 20))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True)
    bar = '<rect x="2" y="6" width="12" height="3" fill="#f00"/>'
    icons = {"width": 16, "height": 16, "icons": {"red": {"body": bar}, "flight": {"body": bar}}}
    characters = {"1f534": "red", "2708": "flight"}
    packages = {}
    for artist, members in (
        ("fluent", {"assets/1f534.webp": buffer.getvalue(), "assets/2708-fe0f.webp": buffer.getvalue()}),
        ("noto", {"icons.json": json.dumps(icons).encode(), "chars.json": json.dumps(characters).encode()}),
    ):
        path = tarball(tmp_path / f"{artist}-1.tgz", members)
        packages[artist] = NpmPackage(name=artist, version="1", integrity=integrity(path), licence="MIT")
    monkeypatch.setattr(sprites, "ARTIST_PACKAGES", packages)
    monkeypatch.setattr(sprites, "FLUENT", packages["fluent"])
    return tmp_path


def test_sprites_are_cut_and_centred(artists: Path) -> None:
    bank = sprites.load_sprites(artists, artists=("fluent", "noto"), things=THINGS)
    assert bank.pixels.shape == (2, 2, 112, 112, 4)
    for sprite in bank.pixels.reshape(4, 112, 112, 4):
        rows, columns = np.nonzero(sprite[..., 3] > 128)
        assert (columns.min(), columns.max()) == (0, 111)
        assert abs((rows.min() + rows.max()) / 2 - 55.5) <= 1
        assert rows.max() - rows.min() == pytest.approx(112 / 4 - 1, abs=2)
        assert (sprite[56, 56] == [255, 0, 0, 255]).all()
    again = sprites.load_sprites(artists, artists=("fluent", "noto"), things=THINGS)
    np.testing.assert_array_equal(again.pixels, bank.pixels)


def test_sprite_faults(artists: Path) -> None:
    with pytest.raises(InputError, match="no drawing of 'cat'"):
        sprites.load_sprites(artists, artists=("noto",), things=(EmojiClass(name="cat", emoji="🐈", seen=True),))
    (artists / "fluent-1.tgz").write_bytes(b"cut")
    with pytest.raises(InputError, match="damaged"):
        sprites.load_sprites(artists, artists=("fluent",), things=THINGS)
    (artists / "fluent-1.tgz").unlink()
    with pytest.raises(InputError, match="run `ebseg train fetch-data`"):
        sprites.load_sprites(artists, artists=("fluent",), things=THINGS)
    with pytest.raises(InputError, match="'dali' is unknown"):
        sprites.load_sprites(artists, artists=("dali",), things=THINGS)


def test_unnamed_objects_are_drawn_by_both_artists_and_show_no_new_class(tmp_path: Path) -> None:
    """One emoji for each reason to be left out, and two that stay."""
    names = {
        "1f9ed": "compass", "1f98a": "fox", "1f408": "cat", "1f63b": "smiling-cat-with-heart-eyes", "1f514": "bell",
        "23f0": "alarm-clock", "1f4a3": "bomb", "1f1e6-1f1fa": "flag-australia",
    }  # fmt: skip
    categories = {
        "Travel & Places": ["compass", "alarm-clock"], "Animals & Nature": ["fox", "cat"],
        "Smileys & Emotion": ["smiling-cat-with-heart-eyes"], "Objects": ["bell", "bomb"],
        "Activities": ["flag-australia"], "Food & Drink": [],
    }  # fmt: skip
    noto = {
        "metadata.json": json.dumps({"categories": categories}).encode(),
        "chars.json": json.dumps(names).encode(),
    }
    tarball(tmp_path / NOTO.file_name, noto)
    fluent = [f"assets/{key}.webp" for key in names if key != "1f4a3"] + ["assets/23f0-fe0f.webp"]
    tarball(tmp_path / FLUENT.file_name, dict.fromkeys(fluent, b""))
    found = unnamed_objects(tmp_path)
    assert [(each.name, each.emoji, each.seen) for each in found] == [
        ("unnamed compass", "\N{COMPASS}", False),
        ("unnamed alarm-clock", "\N{ALARM CLOCK}", False),
    ]
