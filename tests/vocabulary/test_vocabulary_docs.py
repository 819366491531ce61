"""What docs/how-to/vocabularies.md shows works as shown."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import ebseg_deploy
import pytest
from click.testing import CliRunner
from ebseg_deploy.cli import ebseg
from ebseg_deploy.runtime.class_names import ClassEntry, read_classes

PAGE = Path(ebseg_deploy.__file__).parent / "docs" / "how-to" / "vocabularies.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the documents come with the repository, not with the wheel")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def in_folder(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "b.ebseg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands(in_folder: Path) -> None:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    commands = [line[2:] for line in lines if line.startswith("$ ebseg vocab") and "|" not in line]
    assert len(commands) == 8
    CliRunner().invoke(ebseg, ["vocab", "build", "b.ebseg", "--classes", "cat, road", "-o", "street.safetensors"])
    Path("mine.json").write_text('["cat"]')
    for command in commands:
        outcome = CliRunner().invoke(ebseg, shlex.split(command)[1:])
        assert outcome.exit_code == 0, f"{command}: {outcome.output}"
        following = lines[lines.index(f"$ {command}") + 1 :]
        if following and following[0].startswith("wrote"):
            assert outcome.stdout == f"{following[0]}\n"


def test_python(in_folder: Path) -> None:
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(code, names)
    assert names["same"].names == ("cat", "red fox", "grass")  # type: ignore[attr-defined]
    assert names["same"].seen.all()  # type: ignore[attr-defined]
    assert len(names["both"]) == 3 + 149  # type: ignore[arg-type]  # ADE20K has grass, too


def test_class_file(in_folder: Path) -> None:
    (text,) = blocks("json")
    Path("names.json").write_text(text)
    assert read_classes("names.json") == (
        ClassEntry(name="sky"),
        ClassEntry(name="hound", synonyms=("dog",)),
        ClassEntry(name="drone", seen=False),
    )
