"""The loop all stages share: step, log, checkpoint, resume, stop cleanly.

Nothing that decides a weight depends on the clock: only when a checkpoint is written does. A stage draws the data of
step i from (seed, i), so a run that was killed and resumed equals one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from .checkpoints import LAST, load_checkpoint, save_checkpoint
from .history import History

CONFIG_NAME = "config.json"


class Stage(Protocol):
    """One stage of training."""

    name: str

    def config_values(self) -> dict[str, Any]:
        """The config as plain values; a checkpoint of another config is refused."""

    def step(self, step: int) -> Mapping[str, float]:
        """Do optimizer step `step` (from 0) and return figures to log."""

    def finished(self, step: int) -> bool:
        """Is training over after `step` steps?"""

    def state_dict(self) -> dict[str, Any]:
        """Everything later steps depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state_dict()` of an earlier run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How to run, not what to learn: may differ between a run and its continuation."""

    checkpoint_seconds: float = 180.0
    log_every: int = 20
    """Steps over which figures are averaged into a row of the history."""
    max_steps: int | None = None
    """Stop after this many steps of this call, with a checkpoint; the run can go on later."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a run stands."""

    step: int
    finished: bool
    figures: dict[str, float]
    """Last row of the history."""


def run(
    stage: Stage,
    folder: Path,
    config: LoopConfig | None = None,
    *,
    report: Callable[[int, Mapping[str, float]], None] = lambda step, figures: None,
) -> Outcome:
    """Train `stage` in `folder`, from its last checkpoint if there is one.

    SIGTERM and SIGINT end the run after the current step, with a checkpoint.

    Raises:
        CheckpointError: the folder's checkpoint is damaged or of another config, or one cannot be written.
    """
    config = LoopConfig() if config is None else config
    checkpoint = folder / LAST
    step = 0
    if checkpoint.exists():
        step, state = load_checkpoint(checkpoint, stage=stage.name, config=stage.config_values())
        stage.load_state_dict(state)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(stage.config_values(), indent=2) + "\n")
    history = History(folder, resume_step=step)

    def save() -> None:
        save_checkpoint(checkpoint, stage=stage.name, config=stage.config_values(), step=step, state=stage.state_dict())

    last = step + config.max_steps if config.max_steps is not None else None
    sums: dict[str, list[float]] = {}
    with _StopSignals() as stop:
        saved_at = time.monotonic()
        while not stage.finished(step) and not stop.asked and step != last:
            for name, value in stage.step(step).items():
                sums.setdefault(name, []).append(value)
            step += 1
            if step % config.log_every == 0:
                row = {name: sum(values) / len(values) for name, values in sums.items()}
                history.add(step, row)
                report(step, row)
                sums = {}
                # only at a row's end, so that a resumed run averages over the same steps
                if time.monotonic() - saved_at > config.checkpoint_seconds:
                    save()
                    saved_at = time.monotonic()
        save()
    figures = dict(history.rows[-1]) if history.rows else {}
    return Outcome(step=step, finished=stage.finished(step), figures=figures)


class _StopSignals:
    """Turns SIGTERM and SIGINT into a flag while training; a second one acts as usual."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread: signals are somebody else's
            self._before = {}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[number])

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
