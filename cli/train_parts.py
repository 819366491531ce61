"""`ebseg train parts`: where a trained decoder loses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from .train_options import data_option, set_threads


@click.command()
@click.argument("stage_folder", type=click.Path(path_type=Path))
@data_option
@click.option("--scenes", type=click.IntRange(min=1), default=48, show_default=True, help="Of the validation split.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; all cores by default.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, on stdout.")
def command(stage_folder: Path, data: Path | None, scenes: int, threads: int | None, as_json: bool) -> None:
    """Judge naming with true masks (STAGE_FOLDER of stage 2, 2b or 3); of stage 3 also the masks: with true names, and
    as A, B, D and their balance name the best one of each thing."""
    from ..training.ebseg_stage import EbsegStage
    from ..training.emoji_classes import CLASS_NAMES
    from ..training.evaluate import observe
    from ..training.prompts import class_embeddings
    from ..training.recipes import trained_model_and_stage
    from ..training.regions import mask_naming, mask_quality, region_accuracy
    from ..training.scenes import SceneSource
    from ..training.sprites import TRAIN_ARTISTS, load_sprites
    from .tables import print_json, print_table

    set_threads(threads)
    model, stage = trained_model_and_stage(stage_folder)
    source = SceneSource(sprites=load_sprites(data, artists=TRAIN_ARTISTS), split="val")
    text = class_embeddings(model.text_encoder(), CLASS_NAMES)
    naming = region_accuracy(model, source, text, scenes=scenes)
    rows = [
        ("B, true masks: regions named rightly", naming.b_seen, naming.b_new),
        ("D, true masks: regions named rightly", naming.d_seen, naming.d_new),
    ]
    found = {"scenes": scenes, "naming": asdict(naming)}
    if stage == EbsegStage.name:
        observed = observe(model, source, scenes=scenes)
        masks, named_best = mask_quality(observed), mask_naming(observed, model, text)
        named = masks.named_rightly
        rows.append(("best mask of a thing: IoU", masks.best_iou_seen, masks.best_iou_new))
        rows.append(("every mask named rightly: mIoU", named.seen_miou, named.new_miou))
        rows += [(f"best mask of a thing: named rightly, {way}", *each) for way, each in named_best.items()]
        found["masks"] = asdict(masks)
        found["best_masks"] = {way: each._asdict() for way, each in named_best.items()}
    if as_json:
        print_json(found)
        return
    print_table(
        f"{stage_folder}: {scenes} validation scenes, in percent",
        ("part", "seen", "new"),
        [(name, f"{100 * seen:.1f}", f"{100 * new:.1f}") for name, seen, new in rows],
    )
