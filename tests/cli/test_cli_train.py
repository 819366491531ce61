"""`ebseg train` from the command line: help, faults, and a run of some steps that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ebseg_deploy.cli import ebseg
from ebseg_deploy.cli.train import VERBS


def run(*words: object) -> Result:
    return CliRunner().invoke(ebseg, ["train", *(str(word) for word in words)])


def test_help_names_every_verb() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for verb in VERBS:
        assert verb in result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("fetch-data", "--data", tmp_path / "data")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: @lobehub/fluent-emoji-3d: needs the npm client")


def test_stages_without_sprites_name_the_command(tmp_path: Path) -> None:
    result = run("clip", "-r", tmp_path / "run", "--data", tmp_path)
    assert result.exit_code == 1
    assert "run `ebseg train fetch-data`" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [("finish", "{run}", "-o", "{run}/w.safetensors"), ("tune-balance", "{run}")])
def test_a_folder_without_checkpoint_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = run(*(word.format(run=tmp_path) for word in words))
    assert result.exit_code == 1
    assert "no such checkpoint" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_plot_of_nothing(tmp_path: Path) -> None:
    result = run("plot", tmp_path)
    assert result.exit_code == 1
    assert "to plot" in result.stderr


def test_finish_refuses_another_kind_of_file(tmp_path: Path) -> None:
    result = run("finish", tmp_path, "-o", tmp_path / "w.pth")
    assert result.exit_code == 1
    assert "wanted a .safetensors" in result.stderr


def test_a_stage_reports_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's options reach it: two calls of one step each make two steps."""
    from ebseg_deploy.training import recipes

    class Counter:
        name = "clip"

        def config_values(self) -> dict[str, int]:
            return {}

        def step(self, step: int) -> dict[str, float]:
            return {"loss": 1.0 / (step + 1)}

        def finished(self, step: int) -> bool:
            return step >= 2

        def state_dict(self) -> dict[str, int]:
            return {}

        def load_state_dict(self, state: dict[str, int]) -> None:
            assert state == {}

    monkeypatch.setattr(recipes, "training_scenes", lambda data, *, seed: None)
    monkeypatch.setattr(recipes, "clip_stage", lambda source, config: Counter())
    first = run("clip", "-r", tmp_path, "--max-steps", 1)
    assert "step 1, stopped; give the command again to go on" in first.stdout
    second = run("clip", "-r", tmp_path, "--max-steps", 5, "--json")
    assert json.loads(second.stdout) == {"stage": "clip", "step": 2, "finished": True, "figures": {}}
