"""The how-to's example runs, and what it says of the command line is so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.calibration.observers import observer_named
from ebseg_deploy.calibration.ranges import Ranges, read_ranges
from ebseg_deploy.cli.calibrate import command
from PIL import Image

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "calibrate.md"
TEXT = HOW_TO.read_text(encoding="utf-8")


def test_the_example_runs(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    shutil.copytree(tiny_bundle, tmp_path / "b.ebseg")
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(HOW_TO), "exec"), {})
    ranges = read_ranges(tmp_path / "ranges.json")
    assert ranges.observer == "mse"
    assert len(ranges.graphs) == 6


def test_options_and_observers_exist() -> None:
    options = {name for parameter in command.params for name in parameter.opts}
    own = {"--images", "--limit", "--evaluation", "--graph", "--recipe", "--observer", "--no-cache"}
    assert own <= options
    assert all(f"`{name}" in TEXT or f" {name}" in TEXT for name in own)
    for spelling in re.findall(r"^\| `([a-z0-9:.]+)` \|", TEXT.split("## Observers")[1], re.MULTILINE):
        assert observer_named(spelling).spelling == spelling


def test_the_files_fields_are_shown() -> None:
    shown = TEXT.split("## The file")[1]
    assert all(f'"{field}"' in shown for field in Ranges.__struct_fields__)
