"""`ebseg train clip`: stage 1."""

from __future__ import annotations

from pathlib import Path

import click

from .train_options import run_options, run_stage, set_threads


@click.command()
@run_options
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights and pictures.")
@click.option("--bf16/--fp32", default=True, show_default=True, help="bfloat16 towers; fp32 where a CPU lacks bf16.")
def command(
    folder: Path,
    data: Path | None,
    max_steps: int | None,
    checkpoint_seconds: float,
    threads: int | None,
    as_json: bool,
    seed: int,
    bf16: bool,
) -> None:
    """Stage 1: train a nano CLIP on pictures and prompts of all classes, seen and new.

    A curriculum by accuracy, from single objects on plain colours to scenes; the figures to watch are `accuracy` and
    `level` (0 to 4).
    """
    from ..model.config import EBSEG_NANO
    from ..training.clip_stage import ClipStageConfig
    from ..training.recipes import clip_stage, training_scenes

    set_threads(threads)
    config = ClipStageConfig(clip=EBSEG_NANO.clip, seed=seed, bf16=bf16)
    stage = clip_stage(training_scenes(data, seed=seed), config)
    run_stage(stage, folder / "clip", max_steps=max_steps, checkpoint_seconds=checkpoint_seconds, as_json=as_json)
