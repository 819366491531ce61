"""`ebseg quantize`: a bundle's graphs in another precision."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .calibration_pictures import DEFAULT_LIMIT, PICTURES_HELP, survey_pictures
from .options import prepare_output_folder, warn
from .progress import step_progress

if TYPE_CHECKING:
    from ..calibration.quantize_bundle import QuantisedBundle
    from ..calibration.survey import SurveyedPictures
    from ..export.precision.recipes import Recipe
    from ..runtime.bundle import Bundle

RECIPE_HELP = "fp16, bf16, int8, int8-linear, fp8 or int8-cpu; int8-all is an experiment."


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--recipe", "recipe_name", required=True, help=RECIPE_HELP)
@click.option("--images", metavar="SOURCE", help=f"To calibrate on, for int8 and fp8. {PICTURES_HELP}")
@click.option(
    "--limit", type=click.IntRange(min=1), default=DEFAULT_LIMIT, show_default=True, help="Most pictures to use."
)
@click.option(
    "--observer", default="max", show_default=True, metavar="RULE", help="max, percentile:99.99, entropy, mse, mse:fp8."
)
@click.option(
    "--ranges", "ranges_file", type=click.Path(path_type=Path), help="Ranges measured before, in place of --images."
)
@click.option("--save-ranges", type=click.Path(path_type=Path), help="Write the ranges that were used (JSON).")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of `ebseg train fetch-data`, for emoji-scenes.")
@click.option("--no-cache", is_flag=True, help="Keep nothing of the calibration, and use nothing of earlier ones.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle to make, e.g. b-int8.ebseg."
)
@click.option(
    "--keep",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="ONNX nodes that stay FP32, as 'pixel_decoder/*'; repeatable, besides the recipe's own.",
)
@click.option("--emulate", is_flag=True, help="Compute in FP32 and round as the recipe would: to measure on a CPU.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads for the check.  Default: the engine decides.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    bundle: Path,
    recipe_name: str,
    images: str | None,
    limit: int,
    observer: str,
    ranges_file: Path | None,
    save_ranges: Path | None,
    data: Path | None,
    no_cache: bool,
    output: Path,
    patterns: tuple[str, ...],
    emulate: bool,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Make a bundle of another precision from an FP32 bundle.

    Every graph is converted, run in ONNX Runtime and held against its FP32 form, one at a time; the new bundle
    appears only when all agree. int8 and fp8 calibrate first: a broken-off calibration goes on where it was, and one
    that was finished before is not run again.
    """
    from ..calibration.observers import observer_named
    from ..calibration.quantize_bundle import QuantiseConfig, quantise_bundle
    from ..calibration.ranges import read_ranges, write_ranges
    from ..errors import InputError
    from ..export.precision.derive import DeriveConfig, check_keeps, check_output, check_source
    from ..export.precision.recipes import Keep, recipe_named
    from ..runtime.bundle import Bundle
    from ..runtime.cache import cache_folder

    recipe = recipe_named(recipe_name)
    rule = observer_named(observer)
    if recipe.needs_pictures and images is None and ranges_file is None:
        raise InputError(f"recipe {recipe.name}: needs pictures", cure="give --images DIR, or --ranges FILE")
    check_output(output, overwrite=overwrite)
    if save_ranges is not None:
        prepare_output_folder(save_ranges.parent)
    source = Bundle.open(bundle)
    check_source(source)
    if patterns:
        keeps = [Keep(pattern=pattern, reason="asked for with --keep") for pattern in patterns]
        check_keeps(source, keeps)
        recipe = recipe.keeping(*keeps)
    ranges = None if ranges_file is None else read_ranges(ranges_file)
    pictures = None
    if images is not None and recipe.needs_pictures:
        pictures = _pictures(images, limit, data)
    config = QuantiseConfig(
        observer=rule,
        cache=None if no_cache else cache_folder("calibration"),
        derive=DeriveConfig(
            overwrite=overwrite,
            emulate=emulate,
            threads=threads,
            provenance={"derived_by": shlex.join(["ebseg", *sys.argv[1:]])},
        ),
    )
    start = time.perf_counter()
    with step_progress("quantize") as report:
        made = quantise_bundle(
            source,
            output,
            recipe,
            config,
            pictures=pictures,
            ranges=ranges,
            progress=report,
            notice=lambda line: click.echo(line, err=True),
        )
    seconds = time.perf_counter() - start
    for (name, size), found in made.saturated.items():
        for each in found:
            warn(
                f"graph {f'{name} {size}' if size else name}: node {each.node}: {each.values} of constant "
                f"{each.constant}'s values are beyond {each.type.upper()} and became its largest; of a mask that is "
                f"harmless, else give --keep '{each.node}'"
            )
    if save_ranges is not None and made.ranges is not None:
        write_ranges(save_ranges, made.ranges)
    if as_json:
        _print_json(source, made, recipe, output, seconds)
    else:
        _print_tables(source, made, recipe, output, seconds)


def _pictures(images: str, limit: int, data: Path | None) -> SurveyedPictures:
    from ..calibration.coverage import coverage

    pictures = survey_pictures(images, limit, data=data)
    for line in coverage(pictures).doubts:
        warn(line)
    return pictures


def _bytes(bundle: Bundle) -> int:
    return sum(file.bytes for file in bundle.manifest.files.values())


def _print_json(source: Bundle, made: QuantisedBundle, recipe: Recipe, output: Path, seconds: float) -> None:
    import msgspec

    from .tables import print_json

    cosines = {(found.graph, found.size): found.outputs for found in made.cosines}

    def quantisation(place: Any) -> dict[str, Any] | None:
        done = made.quantisations.get(place)
        if done is None:
            return None
        kept = [{"node": each.node, "reason": each.reason} for each in done.kept]
        return {"to": done.to, "macs_share": done.share, "nodes": done.nodes, "kept": kept, "cosine": cosines[place]}

    print_json(
        {
            "bundle": str(output),
            "recipe": recipe.name,
            "seconds": round(seconds, 1),
            "bytes": _bytes(made.bundle),
            "bytes_before": _bytes(source),
            "encoder_macs_share": made.encoder_share,
            "graphs": [
                {
                    "graph": graph.name,
                    "size": graph.size and str(graph.size),
                    "file": graph.file,
                    "compute": msgspec.to_builtins(graph.compute),
                    "quantised": quantisation((graph.name, graph.size)),
                    "saturated": [asdict(each) for each in made.saturated.get((graph.name, graph.size), ())],
                    "parity": graph.parity,
                }
                for graph in made.bundle.manifest.graphs
            ],
        }
    )


def _print_tables(source: Bundle, made: QuantisedBundle, recipe: Recipe, output: Path, seconds: float) -> None:
    from .tables import bytes_text, print_table

    graphs = made.bundle.manifest.graphs
    print_table(
        "Not lowered, or not quantised",
        ("graph", "size", "nodes", "in", "pattern", "reason"),
        [
            (graph.name, graph.size or "every", each.nodes, each.precision, each.pattern, each.reason)
            for graph in graphs
            if graph.compute is not None
            for each in graph.compute.kept
        ],
    )
    if made.quantisations:
        cosines = {(found.graph, found.size): found.outputs for found in made.cosines}
        print_table(
            f"Quantised: {100 * made.encoder_share:.1f} % of the image encoders' multiply-adds",
            ("graph", "size", "to", "products", "kept", "multiply-adds", "least cosine with FP32"),
            [
                (
                    *(name, size or "every", done.to, len(done.nodes), len(done.kept)),
                    *(f"{100 * done.share:.1f} %", f"{min(cosines[name, size].values()):.5f}"),
                )
                for (name, size), done in made.quantisations.items()
            ],
        )
    after, before = (bytes_text(_bytes(bundle)) for bundle in (made.bundle, source))
    print_table(
        f"{output}: {recipe.name}, {after} of {before} in {seconds:.0f} s; largest difference from FP32 per output",
        ("graph", "size", "output", "largest |Δ|"),
        [
            (graph.name, graph.size or "every", name, f"{value:.1e}")
            for graph in graphs
            for name, value in graph.parity.items()
        ],
    )
