"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ebseg_deploy.errors import ExportError
from ebseg_deploy.export import output_folder
from ebseg_deploy.export.output_folder import whole_folder
from ebseg_deploy.export.owner_mark import STALE_SECONDS


def bundle_at(path: Path, content: str = "old") -> Path:
    path.mkdir(parents=True)
    (path / "bundle.json").write_text(content)
    return path


def fill(target: Path, content: str = "new", **options: object) -> None:
    with whole_folder(target, **{"overwrite": False, "needed_bytes": 1, **options}) as folder:
        (folder / "bundle.json").write_text(content)


def fail_half_way(target: Path, failure: BaseException) -> None:
    with whole_folder(target, overwrite=True, needed_bytes=1) as folder:
        (folder / "bundle.json").write_text("half")
        raise failure


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_takes_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "new.ebseg"
    with whole_folder(target, overwrite=False, needed_bytes=1) as folder:
        (folder / "bundle.json").write_text("new")
        assert not target.exists()
    assert (target / "bundle.json").read_text() == "new"
    assert names(tmp_path / "deep") == ["new.ebseg"]


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("b.ebseg"))
    fill(Path("./folder/../c.ebseg"))
    assert names(tmp_path) == ["b.ebseg", "c.ebseg"]


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("before", [True, False])
def test_failure_leaves_what_was_there(tmp_path: Path, failure: BaseException, before: bool) -> None:
    target = tmp_path / "b.ebseg"
    if before:
        bundle_at(target)
    with pytest.raises(type(failure)):
        fail_half_way(target, failure)
    assert names(tmp_path) == (["b.ebseg"] if before else [])
    assert not before or (target / "bundle.json").read_text() == "old"


def test_existing_bundle_needs_overwrite(tmp_path: Path) -> None:
    bundle_at(tmp_path / "b.ebseg")
    with pytest.raises(ExportError, match=r"b\.ebseg exists; give --overwrite"):
        fill(tmp_path / "b.ebseg")
    fill(tmp_path / "b.ebseg", overwrite=True)
    assert (tmp_path / "b.ebseg" / "bundle.json").read_text() == "new"
    assert names(tmp_path) == ["b.ebseg"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_something_that_is_no_bundle_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "photo.jpg").write_text("precious")
    file = tmp_path / "notes.txt"
    file.write_text("precious")
    for target in (folder, file):
        with pytest.raises(ExportError, match="exists"):
            fill(target, overwrite=overwrite)
    assert (folder / "photo.jpg").read_text() == file.read_text() == "precious"
    assert names(tmp_path) == ["holiday", "notes.txt"]


KILLED = """
import os, sys
from pathlib import Path
from ebseg_deploy.export.output_folder import whole_folder

if sys.argv[2] == "moved":
    rename = Path.rename
    Path.rename = lambda path, target: os._exit(9) if ".partial-" in path.name else rename(path, target)
with whole_folder(Path(sys.argv[1]), overwrite=True, needed_bytes=1) as folder:
    (folder / "bundle.json").write_text("killed")
    if sys.argv[2] == "writing":
        os._exit(9)
"""


def killed(target: Path, when: str) -> None:
    """A run that ends without a chance to clear up."""
    code = subprocess.run([sys.executable, "-c", KILLED, str(target), when], timeout=60, check=False).returncode
    assert code == 9


@pytest.mark.parametrize("before", [True, False])
def test_what_a_killed_run_left_is_cleared(tmp_path: Path, before: bool) -> None:
    target = tmp_path / "b[1]*.ebseg"
    if before:
        bundle_at(target)
    killed(target, "writing")
    assert len(names(tmp_path)) == 1 + before
    fill(target, overwrite=True)
    assert names(tmp_path) == [target.name]
    assert (target / "bundle.json").read_text() == "new"


def test_what_a_killed_run_moved_away_comes_back(tmp_path: Path) -> None:
    target = bundle_at(tmp_path / "b.ebseg")
    killed(target, "moved")
    assert not target.exists()
    with pytest.raises(ExportError, match=r"b\.ebseg exists; give --overwrite"):
        fill(target)
    assert names(tmp_path) == ["b.ebseg"]
    assert (target / "bundle.json").read_text() == "old"


def test_two_runs_with_one_target(tmp_path: Path) -> None:
    target = tmp_path / "b.ebseg"
    slow = whole_folder(target, overwrite=False, needed_bytes=1)
    folder = slow.__enter__()
    (folder / "bundle.json").write_text("slow")
    fill(target, "fast")
    assert (folder / "bundle.json").read_text() == "slow", "the other run left it alone"
    with pytest.raises(ExportError, match=r"b\.ebseg exists; give --overwrite"):
        slow.__exit__(None, None, None)
    assert (target / "bundle.json").read_text() == "fast"
    assert names(tmp_path) == ["b.ebseg"]


def test_two_runs_that_overwrite(tmp_path: Path) -> None:
    target = bundle_at(tmp_path / "b.ebseg")
    slow = whole_folder(target, overwrite=True, needed_bytes=1)
    folder = slow.__enter__()
    (folder / "bundle.json").write_text("slow")
    fill(target, "fast", overwrite=True)
    slow.__exit__(None, None, None)
    assert (target / "bundle.json").read_text() == "slow", "the last to end has it"
    assert names(tmp_path) == ["b.ebseg"]


def test_names_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    first, second = (tmp_path / ("b" * 150 + end) for end in ("-first.ebseg", "-second.ebseg"))
    bundle_at(second)
    killed(second, "moved")
    assert not second.exists()
    fill(first)
    assert (first / "bundle.json").read_text() == "new"
    with pytest.raises(ExportError, match=r"second\.ebseg exists"):
        fill(second)  # what was moved away came back to its own name
    assert names(tmp_path) == [first.name, second.name]
    assert (second / "bundle.json").read_text() == "old"


def test_a_name_as_long_as_the_disk_takes(tmp_path: Path) -> None:
    for letter in ("b", "\N{SNOWMAN}"):
        target = tmp_path / (letter * (250 // len(letter.encode())))
        fill(target)
        assert (target / "bundle.json").read_text() == "new"


@pytest.mark.parametrize(("age", "left"), [(60, True), (2 * STALE_SECONDS, False)])
def test_another_machines_partial_folder_is_cleared_when_it_is_old(tmp_path: Path, age: float, left: bool) -> None:
    partial = bundle_at(tmp_path / f".b.ebseg.partial-0badcafe-{os.getpid()}-1")
    os.utime(partial, (time.time() - age,) * 2)
    fill(tmp_path / "b.ebseg")
    assert names(tmp_path) == [partial.name, "b.ebseg"] if left else ["b.ebseg"]


def test_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1_000_000))
    bundle_at(tmp_path / "b.ebseg")
    with pytest.raises(ExportError, match=r"0\.0 GB free on the disk, 2\.0 GB needed"):
        fill(tmp_path / "b.ebseg", overwrite=True, needed_bytes=2_000_000_000)
    assert names(tmp_path) == ["b.ebseg"]
    assert (tmp_path / "b.ebseg" / "bundle.json").read_text() == "old"


def test_disk_that_fills_while_writing(tmp_path: Path) -> None:
    bundle_at(tmp_path / "b.ebseg")
    with pytest.raises(ExportError, match="cannot be written: No space left on device"):
        fail_half_way(tmp_path / "b.ebseg", OSError(28, os.strerror(28)))
    assert (tmp_path / "b.ebseg" / "bundle.json").read_text() == "old"
    assert names(tmp_path) == ["b.ebseg"]


def test_rename_that_fails_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle_at(tmp_path / "b.ebseg")
    rename = Path.rename

    def fail_once(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(ExportError, match="Permission denied"):
        fill(tmp_path / "b.ebseg", overwrite=True)
    assert (tmp_path / "b.ebseg" / "bundle.json").read_text() == "old"
    assert names(tmp_path) == ["b.ebseg"]


def under_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "b.ebseg"


def in_a_system_folder(tmp_path: Path) -> Path:
    return Path("/proc/b.ebseg")


def with_a_name_too_long(tmp_path: Path) -> Path:
    return tmp_path / ("b" * 300)


@pytest.mark.parametrize("place", [under_a_file, in_a_system_folder, with_a_name_too_long])
def test_place_that_cannot_be_written(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    target = place(tmp_path)
    with pytest.raises(ExportError) as caught:
        fill(target)
    assert "\n" not in str(caught.value)
    assert caught.value.cure
