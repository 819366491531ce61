"""What the stages of `ebseg train` share: options, the loop's live log, the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..training.loop import Stage

Command = TypeVar("Command", bound=Callable[..., Any])


def run_options(command: Command) -> Command:
    """-r, --data, --max-steps, --checkpoint-seconds, --threads, --json."""
    options = (
        click.option(
            "-r", "--run", "folder", type=click.Path(path_type=Path), required=True, help="Run folder of all stages."
        ),
        data_option,
        click.option(
            "--max-steps", type=click.IntRange(min=1), help="Stop after so many steps of this call; go on another day."
        ),
        click.option(
            "--checkpoint-seconds", type=click.FloatRange(min=0), default=180.0, show_default=True,
            help="Time between checkpoints.",
        ),
        click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; all cores by default."),
        click.option("--json", "as_json", is_flag=True, help="Where the run stands, machine-readable, on stdout."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of the fetched packages.  [default: $EBSEG_DATA or the user's cache]",
)


def set_threads(threads: int | None) -> None:
    """Limit torch's threads, if asked to."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def run_stage(stage: Stage, folder: Path, *, max_steps: int | None, checkpoint_seconds: float, as_json: bool) -> None:
    """Train, log each row of the history to stderr, and say on stdout where the run stands."""
    from ..training.allocator import keep_freed_memory
    from ..training.loop import LoopConfig, run
    from .tables import print_json

    keep_freed_memory()
    begin = time.monotonic()

    def log(step: int, figures: Mapping[str, float]) -> None:
        values = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        click.echo(f"{stage.name} step {step}  {time.monotonic() - begin:.0f} s  {values}", err=True)

    outcome = run(stage, folder, LoopConfig(max_steps=max_steps, checkpoint_seconds=checkpoint_seconds), report=log)
    if as_json:
        print_json(
            {"stage": stage.name, "step": outcome.step, "finished": outcome.finished, "figures": outcome.figures}
        )
    else:
        state = "finished" if outcome.finished else "stopped; give the command again to go on"
        click.echo(f"{folder}: stage {stage.name} at step {outcome.step}, {state}")
