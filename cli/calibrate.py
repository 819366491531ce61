"""`ebseg calibrate`: the ranges of a bundle's activations, from pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..contract import SIZED_GRAPHS, GraphName
from ..errors import InputError
from .calibration_pictures import DEFAULT_LIMIT, PICTURES_HELP, survey_pictures
from .options import prepare_output_folder, warn
from .progress import step_progress

if TYPE_CHECKING:
    from ..calibration.calibrate import ChooseTensors
    from ..calibration.coverage import Coverage, Overlap, Spread
    from ..calibration.ranges import GraphRanges, Ranges

MUCH_CLIPPED = 0.05
"""Share of an activation's values; more is no tail."""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--images", required=True, metavar="SOURCE", help=PICTURES_HELP)
@click.option(
    "--limit", type=click.IntRange(min=1), default=DEFAULT_LIMIT, show_default=True, help="Most pictures to use."
)
@click.option(
    "--observer", default="max", show_default=True, metavar="RULE", help="max, percentile:99.99, entropy, mse, mse:fp8."
)
@click.option("--graph", "graphs", multiple=True, type=click.Choice(SIZED_GRAPHS), help="Only this graph; repeatable.")
@click.option("--recipe", metavar="NAME", help="Observe what this recipe needs; by default what any needs.")
@click.option("--precision", help="Which of the bundle's precisions is observed; its first by default.")
@click.option(
    "--evaluation", metavar="SOURCE", help="Pictures accuracy will be measured on: warn if they are calibrated on."
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of `ebseg train fetch-data`, for emoji-scenes.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads inside one operator; the engine decides.")
@click.option("--no-cache", is_flag=True, help="Keep nothing of this run, and use nothing of earlier ones.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Ranges file to write (JSON).")
@click.option("--json", "as_json", is_flag=True, help="Coverage and summary, machine-readable, on stdout.")
def command(
    bundle: Path,
    images: str,
    limit: int,
    observer: str,
    graphs: tuple[GraphName, ...],
    recipe: str | None,
    precision: str | None,
    evaluation: str | None,
    data: Path | None,
    threads: int | None,
    no_cache: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Run pictures through a bundle's graphs and write the range of every activation that enters a product.

    A broken-off run goes on where it was when it is started again, and what was found before is not looked for again;
    another --observer needs no further run. Pictures that cannot be read are named and skipped.
    """
    from ..calibration.calibrate import CalibrationConfig, calibrate
    from ..calibration.coverage import coverage, overlap
    from ..calibration.observed_tensors import tensors_for_any_recipe
    from ..calibration.observers import observer_named
    from ..calibration.ranges import write_ranges
    from ..runtime.bundle import Bundle
    from ..runtime.cache import cache_folder

    rule = observer_named(observer)
    chosen = tuple(name for name in SIZED_GRAPHS if not graphs or name in graphs)
    tensors: ChooseTensors = tensors_for_any_recipe
    if recipe is not None:
        chosen, tensors = _of_recipe(recipe, chosen)
    if output.is_dir():
        raise InputError(f"output {output} is a folder", cure="give the path of a file, as ranges.json")
    prepare_output_folder(output.parent)
    opened = Bundle.open(bundle)
    pictures = survey_pictures(images, limit, data=data)
    shown = coverage(pictures)
    for line in shown.doubts:
        warn(line)
    shared = None
    if evaluation is not None:
        shared = overlap(pictures.records, survey_pictures(evaluation, None, data=data).records)
        if shared:
            warn(str(shared))
    config = CalibrationConfig(
        observer=rule,
        graphs=chosen,
        tensors=tensors,
        precision=precision,
        cache=None if no_cache else cache_folder("calibration"),
        threads=threads,
    )
    with step_progress("calibrating", remaining=True) as report:
        ranges = calibrate(opened, pictures, config, progress=report, notice=lambda line: click.echo(line, err=True))
    write_ranges(output, ranges)
    for each in ranges.graphs:
        clipped = _much_clipped(each)
        if clipped is not None:
            warn(clipped)
    _show(output, ranges, shown, shared, as_json)


def _much_clipped(graph: GraphRanges) -> str | None:
    """A line about activations that lost a good part of their values."""
    lost = {name: found.clipped for name, found in graph.ranges.items() if found.clipped > MUCH_CLIPPED}
    if not lost:
        return None
    worst = max(lost, key=lost.__getitem__)
    return (
        f"{graph.graph}: {len(lost)} activations are clipped by more than {100 * MUCH_CLIPPED:.0f} %, {worst} by "
        f"{100 * lost[worst]:.0f} %; --observer max clips nothing"
    )


def _of_recipe(name: str, graphs: tuple[GraphName, ...]) -> tuple[tuple[GraphName, ...], ChooseTensors]:
    """Those of the graphs that a recipe calibrates, and what it needs of them."""
    from ..calibration.quantize_bundle import tensors_to_observe
    from ..export.precision.recipes import recipe_named

    recipe = recipe_named(name)
    chosen = tuple(
        graph for graph in graphs if recipe.graphs[graph].quantised is not None and not recipe.graphs[graph].dynamic
    )
    if not chosen:
        raise InputError(
            f"recipe {name}: calibrates none of {', '.join(graphs)}", cure="give another --recipe or --graph"
        )
    return chosen, tensors_to_observe(recipe)


def _show(output: Path, ranges: Ranges, shown: Coverage, shared: Overlap | None, as_json: bool) -> None:
    from .tables import print_facts, print_json, print_table

    if as_json:
        print_json(
            {
                "ranges": str(output),
                "model": ranges.model,
                "precision": ranges.precision,
                "observer": ranges.observer,
                "pictures_from": ranges.pictures_from,
                "coverage": {**asdict(shown), "doubts": list(shown.doubts)},
                "overlap": None if shared is None else asdict(shared),
                "graphs": [
                    {
                        "graph": each.graph,
                        "size": None if each.size is None else str(each.size),
                        "tensors": len(each.ranges),
                        "clipped": max((found.clipped for found in each.ranges.values()), default=0.0),
                    }
                    for each in ranges.graphs
                ],
            }
        )
        return
    facts: list[tuple[str, object]] = [
        ("pictures", f"{shown.pictures} used, {shown.skipped} unreadable, {shown.duplicates} twice"),
        ("size", f"height {_spread(shown.height)}, width {_spread(shown.width)}"),
        ("aspect", _spread(shown.aspect, digits=2)),
        ("brightness", f"{_spread(shown.brightness)}; {_thirds(shown)}"),
        ("contrast", _spread(shown.contrast)),
    ]
    if shown.class_pictures:
        counts = sorted(shown.class_pictures.values())
        facts.append(
            (
                "classes",
                f"{len(counts) - len(shown.absent_classes)} of {len(counts)}, in {counts[0]} to {counts[-1]} pictures",
            )
        )
    print_facts(f"{ranges.pictures_from}: least / median / most", facts)
    print_table(
        f"{output}: {ranges.model}, {ranges.precision}, observer {ranges.observer}",
        ("graph", "size", "activations", "widest", "largest |x| kept", "most clipped"),
        [
            (
                each.graph,
                "" if each.size is None else each.size,
                len(each.ranges),
                widest[0],
                f"{widest[1].amax:.3g}",
                f"{100 * max(found.clipped for found in each.ranges.values()):.3f} %",
            )
            for each in ranges.graphs
            for widest in [max(each.ranges.items(), key=lambda item: item[1].amax)]
        ],
    )


def _spread(spread: Spread, digits: int = 0) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in (spread.least, spread.median, spread.most))


def _thirds(shown: Coverage) -> str:
    dark, medium, bright = shown.brightness_thirds
    return f"{dark} dark, {medium} medium, {bright} bright"
