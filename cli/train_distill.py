"""`ebseg train distill`: stage 2."""

from __future__ import annotations

from pathlib import Path

import click

from .train_options import run_options, run_stage, set_threads


@click.command()
@run_options
@click.option("--steps", type=click.IntRange(min=1), default=900, show_default=True, help="Length of the schedule.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of pictures and windows.")
@click.option("--bf16/--fp32", default=True, show_default=True, help="bfloat16 towers; fp32 where a CPU lacks bf16.")
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
) -> None:
    """Stage 2: CLIP teaches itself, without labels, to say of a region what it says of the cut-out region.

    Needs stage 1. The figures to watch are `agreement_b` and `agreement_d`.
    """
    from ..training.distill_stage import DistillStageConfig
    from ..training.recipes import distill_stage, training_scenes

    set_threads(threads)
    config = DistillStageConfig(steps=steps, seed=seed, bf16=bf16)
    stage = distill_stage(folder / "clip", training_scenes(data, seed=seed), config)
    run_stage(stage, folder / "distill", max_steps=max_steps, checkpoint_seconds=checkpoint_seconds, as_json=as_json)
