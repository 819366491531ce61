"""`ebseg train ebseg`: stage 3."""

from __future__ import annotations

from pathlib import Path

import click

from .train_options import run_options, run_stage, set_threads


@click.command()
@run_options
@click.option("--steps", type=click.IntRange(min=1), default=4000, show_default=True, help="Length of the schedule.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, scenes and sampled points.")
@click.option("--ssc", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Weight of SSC; 0: without.")
@click.option(
    "--region",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Weight of B's likeness to what CLIP says of the true masks; 0: the published losses alone.",
)
@click.option(
    "--unnamed",
    type=click.FloatRange(0, 0.9),
    default=0.5,
    show_default=True,
    help="Share of the objects that are no class: their masks are taught, their names are not.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=7e-4,
    show_default=True,
    help="At the start of the schedule, which falls to 0; with --start a smaller one forgets less.",
)
@click.option("--name", default="ebseg", show_default=True, help="Folder in the run folder: one for each variation.")
@click.option(
    "--clip",
    "clip_name",
    default="windows",
    show_default=True,
    help="Whose CLIP: the run's folder of stage 2b, or of stage 2.",
)
@click.option(
    "--start", type=click.Path(path_type=Path), help="Folder of an earlier stage 3: begin a schedule with its weights."
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
    ssc: float,
    region: float,
    unnamed: float,
    learning_rate: float,
    name: str,
    clip_name: str,
    start: Path | None,
) -> None:
    """Stage 3: EBSeg's own training on scenes of seen classes: matching, masks, A and B, SSC; CLIP stays frozen.

    Needs stage 2b (or stage 2, with --clip distill).
    """
    from ..model.config import EBSEG_NANO
    from ..training.ebseg_stage import nano_stage
    from ..training.recipes import ebseg_stage, training_scenes

    set_threads(threads)
    config = nano_stage(
        EBSEG_NANO,
        steps=steps,
        seed=seed,
        structure=ssc,
        region=region,
        unnamed=unnamed,
        learning_rate=learning_rate,
    )
    stage = ebseg_stage(folder / clip_name, training_scenes(data, unnamed=unnamed > 0), config, start=start)
    run_stage(stage, folder / name, max_steps=max_steps, checkpoint_seconds=checkpoint_seconds, as_json=as_json)
