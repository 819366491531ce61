"""Every module imports, and each room without what it must not need."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import ebseg_deploy
import pytest

ROOT = Path(ebseg_deploy.__file__).parent
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")

ENGINES = {"onnxruntime"}
FORMATS = {"onnx", "onnx_ir", "onnxscript"}
FRAMEWORKS = {"torch", "torchvision", "open_clip", "segment_anything", "scipy", "matplotlib"}
MUST_NOT_NEED = {
    "benchmarks": FRAMEWORKS | FORMATS | ENGINES,
    "calibration": FRAMEWORKS | {"click", "rich"},
    "cli": FRAMEWORKS | FORMATS | ENGINES | {"tokenizers", "numpy", "PIL", "rich"},
    "export": {"click", "rich"},
    "model": FORMATS | ENGINES | {"click", "rich"},
    "runtime": FRAMEWORKS | FORMATS | ENGINES | {"click", "rich"},
    "training": {"click", "rich"},
}
"""Packages that no module of a room may import when it is itself imported."""

PROGRAM = """
import importlib, pkgutil, sys

for refused in sys.argv[2].split(","):
    sys.modules[refused] = None  # importing it raises, looking for it finds nothing
room = importlib.import_module("ebseg_deploy." + sys.argv[1])
for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
    importlib.import_module(module.name)
    print(module.name)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_without_what_it_must_not_need(room: str) -> None:
    assert room in MUST_NOT_NEED, "a new room: say what it must not need"
    result = python("-c", PROGRAM, room, ",".join(sorted(MUST_NOT_NEED[room])))
    assert result.returncode == 0, result.stderr
    files = {path for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py"}
    assert len(result.stdout.split()) >= len(files)


def test_help_needs_neither_numpy_nor_an_engine() -> None:
    refused = ",".join(sorted(MUST_NOT_NEED["cli"]))
    program = (
        PROGRAM.partition("room = ")[0] + "from ebseg_deploy.cli import main\nsys.argv = ['ebseg', '--help']\nmain()"
    )
    result = python("-c", program, "-", refused)
    assert result.returncode == 0, result.stderr
    assert "segment" in result.stdout


def test_help_is_quick() -> None:
    """Answers at once: under 0.3 s on an idle machine; the best of five, in processor time, on any."""
    import resource

    best = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python("-m", "ebseg_deploy", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.5


def test_error_of_ours_needs_no_framework(tmp_path: Path) -> None:
    start = time.perf_counter()
    result = python("-m", "ebseg_deploy", "inspect", str(tmp_path / "none.ebseg"))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert time.perf_counter() - start < 30
