"""`ebseg train plot`: a run's curves."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("stage_folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="PNG to write.  [default: history.png in it]")
def command(stage_folder: Path, output: Path | None) -> None:
    """Draw every figure of a stage's history against the step."""
    from ..training.history import plot_history

    click.echo(plot_history(stage_folder, output))
