"""The loop: resumed runs equal unbroken ones; broken checkpoints are named; the last good one survives."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ebseg_deploy.errors import CheckpointError, InputError
from ebseg_deploy.training.checkpoints import LAST, load_checkpoint, save_checkpoint
from ebseg_deploy.training.history import plot_history, read_history
from ebseg_deploy.training.loop import LoopConfig, run


class Walk:
    """A stage whose every step depends on the weights, the optimizer's momentum and torch's generator."""

    name = "walk"

    def __init__(self, *, rate: float = 0.1, steps: int = 12, stop_at: int | None = None) -> None:
        torch.manual_seed(4)
        self.rate, self.steps, self.stop_at = rate, steps, stop_at
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.optimizer = torch.optim.AdamW([self.weight], lr=rate)

    def config_values(self) -> dict[str, Any]:
        return {"rate": self.rate}

    def step(self, step: int) -> dict[str, float]:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        loss = ((self.weight - torch.randn(3)) ** 2).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": float(loss.detach())}

    def finished(self, step: int) -> bool:
        return step >= self.steps

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight.detach(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight.data.copy_(state["weight"])
        self.optimizer.load_state_dict(state["optimizer"])


LOOP = LoopConfig(log_every=2, checkpoint_seconds=0)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole = Walk()
    run(whole, tmp_path / "whole", LOOP)
    first = run(Walk(), tmp_path / "parts", LoopConfig(log_every=2, max_steps=4))
    assert (first.step, first.finished) == (4, False)
    last = Walk()
    outcome = run(last, tmp_path / "parts", LOOP)
    assert (outcome.step, outcome.finished) == (12, True)
    assert torch.equal(last.weight, whole.weight)
    assert read_history(tmp_path / "parts") == read_history(tmp_path / "whole")


def test_sigterm_ends_after_the_step_with_a_checkpoint(tmp_path: Path) -> None:
    outcome = run(Walk(stop_at=4), tmp_path, LoopConfig(log_every=2))
    assert (outcome.step, outcome.finished) == (5, False)
    assert load_checkpoint(tmp_path / LAST, stage="walk")[0] == 5
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    """A kill loses the steps since the checkpoint; the history must not keep them twice."""
    run(Walk(), tmp_path, LoopConfig(log_every=2, max_steps=4))
    rows = [*read_history(tmp_path), {"step": 6.0, "loss": 99.0}]
    (tmp_path / "history.json").write_text(json.dumps(rows))
    run(Walk(), tmp_path, LOOP)
    assert [row["step"] for row in read_history(tmp_path)] == [2, 4, 6, 8, 10, 12]
    assert all(row["loss"] != 99 for row in read_history(tmp_path))


def test_another_config_is_refused(tmp_path: Path) -> None:
    run(Walk(), tmp_path, LoopConfig(max_steps=2))
    with pytest.raises(CheckpointError, match=r"another config \(rate differ\)"):
        run(Walk(rate=0.2), tmp_path, LOOP)


def test_another_stage_is_refused(tmp_path: Path) -> None:
    run(Walk(), tmp_path, LoopConfig(max_steps=2))
    with pytest.raises(CheckpointError, match="stage 'walk', wanted 'clip'"):
        load_checkpoint(tmp_path / LAST, stage="clip")


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    run(Walk(), tmp_path, LoopConfig(max_steps=2))
    path = tmp_path / LAST
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no checkpoint"}[damage])
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        run(Walk(), tmp_path, LOOP)


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / LAST
    save_checkpoint(path, stage="walk", config={}, step=1, state={"x": torch.ones(2)})

    def full(content: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"step 2 could not be written .*No space left"):
        save_checkpoint(path, stage="walk", config={}, step=2, state={"x": torch.zeros(2)})
    assert [file.name for file in tmp_path.iterdir()] == [LAST]
    step, state = load_checkpoint(path, stage="walk")
    assert step == 1
    assert state["x"].tolist() == [1, 1]


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"format": 1, "trap": Trap()}, tmp_path / LAST)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / LAST, stage="walk")
    assert not (tmp_path / "sprung").exists()


def test_history_files_and_plot(tmp_path: Path) -> None:
    run(Walk(), tmp_path, LOOP)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0] == "step,loss"
    assert len(lines) == 7
    assert plot_history(tmp_path).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="no history"):
        plot_history(tmp_path / "elsewhere")
