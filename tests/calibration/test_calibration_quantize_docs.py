"""What the how-to says of recipes and commands is so, and its example runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from ebseg_deploy.cli import bench_precision, quantize, sensitivity
from ebseg_deploy.export.precision.recipes import RECIPES
from ebseg_deploy.runtime.bundle import Bundle

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "quantize.md"
TEXT = HOW_TO.read_text(encoding="utf-8")


def test_every_recipe_has_a_row_and_every_row_a_recipe() -> None:
    table = TEXT.split("## Recipes")[1].split("##")[0]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)]
    assert sorted(named) == sorted(RECIPES)
    for row in re.findall(r"^\| `.*$", table, re.MULTILINE):
        name = re.findall(r"`(.*?)`", row)[0]
        assert row.endswith("| yes |" if RECIPES[name].needs_pictures else "| no |")


@pytest.mark.parametrize(
    ("verb", "command"),
    [
        ("ebseg quantize", quantize.command),
        ("ebseg sensitivity", sensitivity.command),
        ("ebseg bench precision", bench_precision.command),
    ],
)
def test_options_in_the_examples_exist(verb: str, command: object) -> None:
    options = {name for parameter in command.params for name in parameter.opts}  # type: ignore[attr-defined]
    lines = [line for line in TEXT.splitlines() if line.startswith(verb)]
    assert lines
    assert {word for line in lines for word in re.findall(r"(?<= )--?[a-z][a-z-]*", line)} <= options


def test_the_example_runs(tiny_nano: Bundle, patchwork: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    shutil.copytree(tiny_nano.source, tmp_path / "b.ebseg")
    shutil.copytree(patchwork, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(HOW_TO), "exec"), {})
    assert Bundle.open(tmp_path / "b-int8.ebseg").precisions == ("int8",)
