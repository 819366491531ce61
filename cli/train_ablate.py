"""`ebseg train ablate`: the paper's table for trained decoders."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from .train_options import data_option, set_threads


@click.command()
@click.argument("stage_folders", type=click.Path(path_type=Path), nargs=-1, required=True)
@data_option
@click.option("--scenes", type=click.IntRange(min=1), default=240, show_default=True, help="Of the test split.")
@click.option("--validation", type=click.IntRange(min=1), default=96, show_default=True, help="Scenes that tune.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; all cores by default.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, on stdout.")
def command(
    stage_folders: tuple[Path, ...], data: Path | None, scenes: int, validation: int, threads: int | None, as_json: bool
) -> None:
    """Test accuracy of A only, B only, D only, A + B and the balanced whole, for each trained decoder.

    Give folders of stage 3: trained with and without SSC (`ebseg train ebseg --ssc 0 --name no-ssc`), by several seeds.
    The balance is tuned for each decoder on the validation split.
    """
    from ..training.emoji_classes import CLASS_NAMES
    from ..training.evaluate import ABLATIONS, judge, observe, search_balance
    from ..training.prompts import class_embeddings
    from ..training.recipes import trained_model
    from ..training.scenes import SceneSource
    from ..training.sprites import TRAIN_ARTISTS, load_sprites
    from .tables import print_json, print_table

    set_threads(threads)
    sprites = load_sprites(data, artists=TRAIN_ARTISTS)
    val, test = (SceneSource(sprites=sprites, split=split) for split in ("val", "test"))
    rows = []
    for folder in stage_folders:
        model = trained_model(folder)
        text = class_embeddings(model.text_encoder(), CLASS_NAMES)
        best, _ = search_balance(observe(model, val, scenes=validation), model, text)
        observed = observe(model, test, scenes=scenes)
        for name, balance in {**ABLATIONS, "balanced": best}.items():
            rows.append((folder, name, balance, judge(observed, model, text, balance)))
    if as_json:
        print_json([{"folder": str(f), "ablation": n, **asdict(b), **asdict(figures)} for f, n, b, figures in rows])
        return
    print_table(
        f"{scenes} test scenes, mIoU in percent",
        ("decoder", "embeddings", "α", "β", "γ", "seen", "new", "harmonic"),
        [
            (
                folder.name, name, balance.alpha, balance.beta, balance.gamma,
                *(f"{100 * v:.1f}" for v in (figures.seen_miou, figures.new_miou, figures.harmonic_miou)),
            )
            for folder, name, balance, figures in rows
        ],
    )  # fmt: skip
