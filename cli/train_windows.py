"""`ebseg train windows`: stage 2b."""

from __future__ import annotations

from pathlib import Path

import click

from .train_options import run_options, run_stage, set_threads


@click.command()
@run_options
@click.option("--steps", type=click.IntRange(min=1), default=3000, show_default=True, help="Length of the schedule.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of pictures and windows.")
@click.option("--bf16/--fp32", default=True, show_default=True, help="bfloat16 towers; fp32 where a CPU lacks bf16.")
@click.option("--name", default="windows", show_default=True, help="Folder in the run folder: one for each schedule.")
@click.option(
    "--start", type=click.Path(path_type=Path), help="Folder of an earlier stage 2b: begin a schedule with its weights."
)
def command(
    folder: Path,
    data: Path | None,
    max_steps: int | None,
    checkpoint_seconds: float,
    threads: int | None,
    as_json: bool,
    steps: int,
    seed: int,
    bf16: bool,
    name: str,
    start: Path | None,
) -> None:
    """Stage 2b: CLIP learns from captions what windows of a scene show, by masked queries (B) and by pooling (D).

    Needs stage 2. The figures to watch are `accuracy_b` and `accuracy_d`.
    """
    from ..training.recipes import training_scenes, window_stage
    from ..training.window_stage import WindowStageConfig

    set_threads(threads)
    config = WindowStageConfig(steps=steps, seed=seed, bf16=bf16)
    stage = window_stage(start or folder / "distill", training_scenes(data, seed=seed), config)
    run_stage(stage, folder / name, max_steps=max_steps, checkpoint_seconds=checkpoint_seconds, as_json=as_json)
