"""`ebseg train` from the command line: help, faults, and a run of some steps that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ebseg_deploy.cli import ebseg
from ebseg_deploy.cli.train import VERBS
from ebseg_deploy.errors import InputError


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


def test_stage_3_takes_clip_from_any_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ebseg_deploy.training import recipes

    asked: list[Path] = []

    def stage(clip_folder: Path, *rest: object, **options: object) -> None:
        asked.append(clip_folder)
        raise InputError("asked", cure="no more")

    monkeypatch.setattr(recipes, "ebseg_stage", stage)
    monkeypatch.setattr(recipes, "training_scenes", lambda *rest, **options: None)
    assert run("ebseg", "-r", tmp_path, "--clip", "windows-2").exit_code == 1
    assert asked == [tmp_path / "windows-2"]


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


def test_options_of_stage_3_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ebseg_deploy.errors import InputError
    from ebseg_deploy.training import recipes
    from ebseg_deploy.training.ebseg_stage import NANO_LEARNING_RATE, EbsegStageConfig

    given: list[tuple[EbsegStageConfig, Path | None]] = []

    def note(clip: Path, source: object, config: EbsegStageConfig, *, start: Path | None) -> None:
        given.append((config, start))
        raise InputError("enough", cure="none")

    monkeypatch.setattr(recipes, "training_scenes", lambda data, **options: None)
    monkeypatch.setattr(recipes, "ebseg_stage", note)
    for words in ((), ("--learning-rate", 1e-4, "--region", 0, "--start", tmp_path / "ebseg")):
        assert "enough" in run("ebseg", "-r", tmp_path, *words).stderr
    (plain, begin), (other, start) = given
    assert (plain.learning_rate, plain.loss.region, begin) == (NANO_LEARNING_RATE, 10, None)
    assert (other.learning_rate, other.loss.region, start) == (1e-4, 0, tmp_path / "ebseg")


def test_parts_judges_naming_and_masks_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import torch
    from ebseg_deploy.model.ebseg import EBSeg
    from ebseg_deploy.training import recipes, sprites
    from ebseg_deploy.training.initialise import initialise

    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[1] / "training")])
    from paper_sprites import TINY, paper_scenes

    torch.manual_seed(0)
    model = EBSeg(TINY).eval()
    initialise(model, 0, sam=True)
    monkeypatch.setattr(recipes, "trained_model_and_stage", lambda folder: (model, folder.name))
    monkeypatch.setattr(sprites, "load_sprites", lambda data, artists: paper_scenes().sprites)
    whole = json.loads(run("parts", "ebseg", "--scenes", 8, "--json").stdout)
    assert set(whole) == {"scenes", "naming", "masks", "best_masks"}
    assert set(whole["best_masks"]) == {"A", "B", "D", "balanced"}
    shares = [value for each in whole["best_masks"].values() for value in each.values()]
    assert all(0 <= share <= 1 for share in shares)
    assert set(json.loads(run("parts", "windows", "--scenes", 8, "--json").stdout)) == {"scenes", "naming"}


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Three small pictures with label maps, names, and weights of a tiny variant."""
    import sys

    import numpy as np
    from ebseg_deploy.model import config as variants
    from ebseg_deploy.model.checkpoint import save_checkpoint
    from ebseg_deploy.model.ebseg import EBSeg
    from PIL import Image

    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[1] / "training")])
    from paper_sprites import TINY

    monkeypatch.setitem(variants.VARIANTS, TINY.name, TINY)
    data = {"images": tmp_path / "images", "labels": tmp_path / "labels", "names": tmp_path / "names.txt"}
    data["names"].write_text("cat\nred fox\nsky\n")
    for folder in (data["images"], data["labels"]):
        folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        truth = rng.integers(0, 3, (3, 3), np.uint8).repeat(40, 0).repeat(40, 1)
        Image.fromarray(truth).save(data["labels"] / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (120, 120, 3), np.uint8)).save(data["images"] / f"{index}.png")
    data["checkpoint"] = tmp_path / "tiny.pth"
    save_checkpoint(EBSeg(TINY), data["checkpoint"])
    return data


def finetune(data: dict[str, Path], *more: object) -> Result:
    words = [part for name, path in data.items() for part in (f"--{name}", path)]
    return run("finetune", "--model", "ebseg-tiny", *words, "--size", 128, "--batch", 2, "--steps", 2, *more)


def test_finetune_and_finish(own_data: dict[str, Path], tmp_path: Path) -> None:
    from ebseg_deploy.model.checkpoint import read_state

    result = finetune(own_data, "-r", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["finished"]
    weights = tmp_path / "mine.safetensors"
    result = run("finish", tmp_path / "run" / "finetune", "--model", "ebseg-tiny", "-o", weights)
    assert result.exit_code == 0, result.output
    before, after = read_state(own_data["checkpoint"]), read_state(weights)
    changed = {
        name
        for name in after
        if (before[name] - after[name].float()).abs().max() > 1e-3 * before[name].abs().max() + 1e-5
    }
    assert changed
    assert all(
        name.startswith("sem_seg_head.") or name.endswith(("pos_embed", "positional_embedding", "bg_embed"))
        for name in changed
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "100"), "wanted a multiple of 32"),
        (("--device", "toaster"), "no such device"),
        (("--learning-rate", "0"), "Invalid value"),
    ],
)
def test_finetune_faults(own_data: dict[str, Path], tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    result = finetune(own_data, "-r", tmp_path / "run", *words)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_finetune_names_a_label_beyond_the_names(own_data: dict[str, Path], tmp_path: Path) -> None:
    own_data["names"].write_text("cat\n")
    result = finetune(own_data, "-r", tmp_path / "run")
    assert result.exit_code == 1
    assert "wanted below 1 or 255" in result.stderr
