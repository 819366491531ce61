"""`ebseg train finish`: a run's weights as one file."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("stage_folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write, *.safetensors.")
@click.option("--model", "model_name", default="ebseg-nano", show_default=True, help="Whose weights these are.")
def command(stage_folder: Path, output: Path, model_name: str) -> None:
    """Write the weights of a trained decoder (STAGE_FOLDER, of stage 3) in float16, for `ebseg export --checkpoint`."""
    from ..model.config import config_named
    from ..training.finish import write_weights
    from .tables import bytes_text

    write_weights(stage_folder, output, config_named(model_name))
    click.echo(f"{output}: {bytes_text(output.stat().st_size)}")
