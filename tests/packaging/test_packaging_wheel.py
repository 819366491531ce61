"""What is built is whole: every room and data file in the wheel, nothing else; and the wheel runs without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import ebseg_deploy
import pytest

ROOT = Path(ebseg_deploy.__file__).parent
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")
DATA = {".json", ".txt", ".png", ".jpg", ".safetensors", ".typed", ".cu"}


def shipped_files() -> set[str]:
    """Paths in the wheel that the rooms call for."""
    files = {path for path in ROOT.iterdir() if path.suffix == ".py" or path.name == "py.typed"}
    for room in ROOMS:
        files |= {path for path in (ROOT / room).rglob("*") if path.suffix in DATA | {".py"}}
    return {f"ebseg_deploy/{path.relative_to(ROOT).as_posix()}" for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from it; made from a copy, so that the clone stays clean."""
    source = tmp_path_factory.mktemp("source") / "clone"
    kept = {*ROOMS, "docs"}
    source.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, source)
        elif path.name in kept:
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    output = tmp_path_factory.mktemp("dist")
    result = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(source)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return output


def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def test_wheel_holds_every_room_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(wheel(built)) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = shipped_files()
    assert len(wanted) > 100
    assert names == wanted


def test_wheel_describes_itself(built: Path) -> None:
    path = wheel(built)
    assert path.name == f"ebseg_deploy-{ebseg_deploy.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        info = path.name.removesuffix("-py3-none-any.whl") + ".dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        assert "ebseg = ebseg_deploy.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert needed
    assert not any(heavy in line for line in needed for heavy in ("torch", "onnx", "scipy"))


def test_sdist_builds_and_holds_the_same(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name.removeprefix("ebseg_deploy/") for name in shipped_files()} <= names
    assert {"README.md", "LICENSE", "pyproject.toml"} <= names


@pytest.mark.slow
def test_wheel_segments_without_torch(built: Path, tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    """Installed with the runtime's extra alone into an empty environment."""
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        command = [str(argument) for argument in arguments]
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)

    installed = run(binaries / "python", "-m", "pip", "install", "--quiet", f"{wheel(built)}[cpu]")
    assert installed.returncode == 0, installed.stderr
    listed = run(binaries / "python", "-m", "pip", "list").stdout.lower()
    assert "onnxruntime" in listed
    for heavy in ("torch", "onnx ", "open_clip", "segment", "scipy"):
        assert heavy not in listed
    result = run(binaries / "ebseg", "segment", tiny_bundle, picture, "--classes", "cat, road", "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "blocks.labels.png").is_file()
    assert (tmp_path / "out" / "blocks.overlay.png").is_file()
    export = run(binaries / "ebseg", "export", "--model", "ebseg-b", "--seeded", "-o", "b.ebseg")
    assert export.returncode == 1
    assert "pip install 'ebseg-deploy[export" in export.stderr
