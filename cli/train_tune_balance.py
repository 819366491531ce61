"""`ebseg train tune-balance`: α, β and γ for a trained decoder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from .train_options import data_option, set_threads


@click.command()
@click.argument("stage_folder", type=click.Path(path_type=Path))
@data_option
@click.option("--scenes", type=click.IntRange(min=1), default=96, show_default=True, help="Of the validation split.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; all cores by default.")
@click.option("--json", "as_json", is_flag=True, help="All that was tried, machine-readable.")
def command(stage_folder: Path, data: Path | None, scenes: int, threads: int | None, as_json: bool) -> None:
    """Choose α, β and γ of a trained decoder (STAGE_FOLDER, of stage 3) by harmonic mIoU on the validation split.

    Test scenes are never looked at. The figures are at the masks' resolution, a quarter of the picture's.
    """
    from ..training.emoji_classes import CLASS_NAMES
    from ..training.evaluate import observe, search_balance
    from ..training.prompts import class_embeddings
    from ..training.recipes import trained_model
    from ..training.scenes import SceneSource
    from ..training.sprites import TRAIN_ARTISTS, load_sprites
    from .tables import print_json, print_table

    set_threads(threads)
    model = trained_model(stage_folder)
    source = SceneSource(sprites=load_sprites(data, artists=TRAIN_ARTISTS), split="val")
    text = class_embeddings(model.text_encoder(), CLASS_NAMES)
    best, tried = search_balance(observe(model, source, scenes=scenes), model, text)
    if as_json:
        rows = [{**asdict(balance), **asdict(figures)} for balance, figures in tried]
        print_json({"best": asdict(best), "scenes": scenes, "tried": rows})
        return
    ranked = sorted(tried, key=lambda pair: -pair[1].harmonic_miou)[:10]
    print_table(
        f"{stage_folder}: best of {len(tried)} balances on {scenes} validation scenes, mIoU in percent",
        ("α", "β", "γ", "seen", "new", "harmonic"),
        [
            (b.alpha, b.beta, b.gamma, *(f"{100 * v:.1f}" for v in (f.seen_miou, f.new_miou, f.harmonic_miou)))
            for b, f in ranked
        ],
    )
