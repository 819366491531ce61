"""`ebseg train fetch-data`: the sprites of the emoji scenes, through npm."""

from __future__ import annotations

from pathlib import Path

import click

from .train_options import data_option


@click.command()
@data_option
def command(data: Path | None) -> None:
    """Fetch the packages that hold the sprites: Fluent (MIT), Noto (Apache-2.0) and Twemoji (CC BY 4.0).

    Pinned versions, checked against the registry's hashes; what is there already is not fetched again. Needs npm.
    """
    from ..training.emoji_packages import default_cache, fetch
    from ..training.sprites import load_sprites

    folder = data or default_cache()
    fetch(cache=folder, report=lambda line: click.echo(line, err=True))
    bank = load_sprites(folder)
    click.echo(f"{folder}: {len(bank.names)} things by {', '.join(bank.artists)}")
