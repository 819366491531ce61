"""`ebseg bench precision`: recipes side by side."""

from __future__ import annotations

from pathlib import Path

import click

from .options import prepare_output_folder
from .progress import step_progress


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FP32_BUNDLE [BUNDLE]...")
@click.option("--scenes", type=click.IntRange(min=0), default=240, show_default=True, help="Emoji scenes; 0 for none.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of `ebseg train fetch-data`.")
@click.option("--untrained", is_flag=True, help="The weights are seeded: leave mIoU out, and say how labels agree.")
@click.option("--repeats", type=click.IntRange(min=0), default=5, show_default=True, help="Timed pairs; 0 for none.")
@click.option("--warmup", type=click.IntRange(min=0), default=1, show_default=True, help="Pairs that do not count.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads inside one operator; the engine decides.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for precision.json and precision.md; a broken-off run goes on from there.",
)
@click.option("--json", "as_json", is_flag=True, help="Everything, machine-readable, on stdout.")
def command(
    bundles: tuple[Path, ...],
    scenes: int,
    data: Path | None,
    untrained: bool,
    repeats: int,
    warmup: int,
    threads: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Hold bundles made by `ebseg quantize` against the FP32 bundle they were made of.

    Per graph the size and the latency in ONNX Runtime, per bundle how many pixels keep FP32's label, and the mIoU on
    held-out emoji scenes.
    """
    import json

    from ..benchmarks.labelled_sets import EmojiScenes
    from ..benchmarks.precision import PrecisionConfig, measure_precisions
    from ..benchmarks.precision_table import (
        GRAPH_COLUMNS,
        RECIPE_COLUMNS,
        graph_rows,
        markdown,
        recipe_rows,
        title,
    )
    from ..runtime.atomic_write import write_atomically
    from ..runtime.bundle import Bundle
    from .tables import print_json, print_table

    if output is not None:
        prepare_output_folder(output)
    config = PrecisionConfig(repeats=repeats, warmup=warmup, threads=threads, accuracy=not untrained)
    opened = [Bundle.open(bundle) for bundle in bundles]
    examples = EmojiScenes(scenes=scenes, cache=data) if scenes else None
    with step_progress("precision") as report:
        found = measure_precisions(opened, config, examples, state=output, progress=report)
    if output is not None:
        write_atomically(output / "precision.json", (json.dumps(found.as_dict(), indent=2) + "\n").encode())
        write_atomically(output / "precision.md", markdown(found).encode())
    if as_json:
        print_json(found.as_dict())
        return
    print_table(title(found), RECIPE_COLUMNS, recipe_rows(found))
    print_table("Graphs", GRAPH_COLUMNS, graph_rows(found))
