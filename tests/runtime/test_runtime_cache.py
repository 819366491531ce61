"""The cache folder stays bounded, and is emptied on demand."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from ebseg_deploy.cli import ebseg
from ebseg_deploy.errors import BundleError
from ebseg_deploy.runtime import archive, cache
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.cache import KINDS, cache_folder, clear_cache, remove_folder, trim_folder, used_bytes

DAYS = 24 * 3600


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def filled(path: Path, size: int, *, days_ago: float = 0) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "file").write_bytes(b"x" * size)
    os.utime(path, (time.time() - days_ago * DAYS,) * 2)
    return path


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


class TestTrim:
    def test_the_longest_unused_go_first_and_no_more_than_needed(self, tmp_path: Path) -> None:
        for name, days in (("a", 9), ("b", 3), ("c", 5), ("d", 2)):
            filled(tmp_path / "kind" / name, 100, days_ago=days)
        trim_folder(tmp_path / "kind", limit_bytes=200, keep=tmp_path / "kind" / "d")
        assert names(tmp_path / "kind") == ["b", "d"]

    def test_below_the_limit_nothing_goes(self, tmp_path: Path) -> None:
        filled(tmp_path / "kind" / "a", 100, days_ago=99)
        trim_folder(tmp_path / "kind", limit_bytes=100, keep=tmp_path / "none")
        assert names(tmp_path / "kind") == ["a"]

    def test_what_may_be_in_use_stays(self, tmp_path: Path) -> None:
        filled(tmp_path / "kind" / "today", 100)
        own = filled(tmp_path / "kind" / "own", 100, days_ago=50)
        trim_folder(tmp_path / "kind", limit_bytes=0, keep=own)
        assert names(tmp_path / "kind") == ["own", "today"]

    def test_what_a_broken_off_run_left_goes(self, tmp_path: Path) -> None:
        filled(tmp_path / "kind" / ".unpacking-old", 100, days_ago=3)
        filled(tmp_path / "kind" / ".unpacking-new", 100)
        trim_folder(tmp_path / "kind", limit_bytes=10**9, keep=tmp_path / "none")
        assert names(tmp_path / "kind") == [".unpacking-new"]

    def test_no_folder(self, tmp_path: Path) -> None:
        trim_folder(tmp_path / "none", limit_bytes=0, keep=tmp_path)
        assert used_bytes(tmp_path / "none") == 0


def zipped(bundle: Path, name: str, tmp_path: Path) -> Path:
    """The bundle as a zip; another name gives another zip."""
    copy = Path(shutil.copytree(bundle, tmp_path / name))
    (copy / "note.txt").write_text(name)
    return Path(shutil.make_archive(str(tmp_path / name), "zip", copy))


def test_unpacking_makes_room(tiny_bundle: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (zipped(tiny_bundle, name, tmp_path) for name in ("one", "two"))
    monkeypatch.setattr(archive, "LARGEST_KIND_BYTES", 1)
    unpacked = Bundle.open(first).path
    os.utime(unpacked, (time.time() - 3 * DAYS,) * 2)
    other = Bundle.open(second).path
    assert names(folder / "bundles") == [other.name]
    assert Bundle.open(first).path == unpacked, "unpacked once more"
    assert len(names(folder / "bundles")) == 2, "today's stay"


def test_opening_counts_as_use(tiny_bundle: Path, tmp_path: Path, folder: Path) -> None:
    path = zipped(tiny_bundle, "one", tmp_path)
    unpacked = Bundle.open(path).path
    os.utime(unpacked, (0, 0))
    Bundle.open(path)
    assert time.time() - unpacked.stat().st_mtime < DAYS


def test_a_full_disk_names_the_command(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(BundleError, match="ebseg doctor --clean-cache"):
        Bundle.open(zipped(tiny_bundle, "one", tmp_path))


def test_emptied_on_demand_and_nothing_beside_it(folder: Path) -> None:
    for kind in KINDS:
        filled(cache_folder(kind), 100)
    filled(folder / "emoji", 100)
    shown = json.loads(CliRunner().invoke(ebseg, ["doctor", "--json"]).stdout)["checks"]
    (check,) = (each for each in shown if each["what"] == "cache folder")
    assert f"{100 * len(KINDS)} B in it" in check["found"]
    outcome = CliRunner().invoke(ebseg, ["doctor", "--clean-cache", "--json"])
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout) == {"folder": str(folder), "freed_bytes": dict.fromkeys(KINDS, 100)}
    assert names(folder) == ["emoji"]
    outcome = CliRunner().invoke(ebseg, ["doctor", "--clean-cache"])
    assert outcome.stdout == f"{folder}: 0 B freed\n"


def test_what_cannot_be_removed_is_not_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(cache_folder("prompts"), 100)

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    assert clear_cache()["prompts"] == 0
    assert cache.used_bytes(cache_folder("prompts")) == 100


def test_a_removal_that_breaks_off_leaves_nothing_to_be_taken_for_whole(
    tiny_bundle: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archived = zipped(tiny_bundle, "one", tmp_path)
    unpacked = Bundle.open(archived).path
    whole = used_bytes(unpacked)
    with monkeypatch.context() as broken:
        broken.setattr(cache.shutil, "rmtree", lambda path, ignore_errors: (path / "note.txt").unlink(missing_ok=True))
        remove_folder(unpacked)
        assert not unpacked.exists()
        assert Bundle.open(archived).path == unpacked
        assert used_bytes(unpacked) == whole
        broken.setattr(cache.shutil, "rmtree", lambda path, ignore_errors: None)
        assert clear_cache()["bundles"] == 0, "it lost its name and is still there"
    assert not unpacked.exists()
    assert used_bytes(folder) > whole
    clear_cache()
    assert names(folder) == []
