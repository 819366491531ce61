"""`ebseg quantize`: a bundle's graphs in another precision."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import click

from .progress import step_progress


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--recipe", "recipe_name", required=True, help="fp16 or bf16.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle to make, e.g. b-fp16.ebseg."
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
    output: Path,
    patterns: tuple[str, ...],
    emulate: bool,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Make a bundle of another precision from an FP32 bundle.

    Every graph is converted, run in ONNX Runtime and held against its FP32 form, one at a time; the new bundle
    appears only when all agree.
    """
    from ..export.precision.derive import DeriveConfig, check_keeps, check_source, derive_bundle
    from ..export.precision.recipes import Keep, recipe_named
    from ..runtime.bundle import Bundle
    from .tables import bytes_text, print_json, print_table

    recipe = recipe_named(recipe_name)
    source = Bundle.open(bundle)
    check_source(source)
    if patterns:
        keeps = [Keep(pattern=pattern, reason="asked for with --keep") for pattern in patterns]
        check_keeps(source, keeps)
        recipe = recipe.keeping(*keeps)
    config = DeriveConfig(
        overwrite=overwrite,
        emulate=emulate,
        threads=threads,
        provenance={"derived_by": shlex.join(["ebseg", *sys.argv[1:]])},
    )
    start = time.perf_counter()
    with step_progress("quantize") as report:
        made = derive_bundle(source, output, recipe, config, progress=report)
    seconds = time.perf_counter() - start
    before, after = (sum(file.bytes for file in each.manifest.files.values()) for each in (source, made))
    if as_json:
        import msgspec

        print_json(
            {
                "bundle": str(output),
                "recipe": recipe.name,
                "seconds": round(seconds, 1),
                "bytes": after,
                "bytes_before": before,
                "graphs": [
                    {
                        "graph": graph.name,
                        "size": graph.size and str(graph.size),
                        "file": graph.file,
                        "compute": msgspec.to_builtins(graph.compute),
                        "parity": graph.parity,
                    }
                    for graph in made.manifest.graphs
                ],
            }
        )
        return
    kept = [
        (graph.name, graph.size or "every", each.nodes, each.precision, each.pattern, each.reason)
        for graph in made.manifest.graphs
        if graph.compute is not None
        for each in graph.compute.kept
    ]
    print_table("Not lowered", ("graph", "size", "nodes", "in", "pattern", "reason"), kept)
    print_table(
        f"{output}: {recipe.name}, {bytes_text(after)} of {bytes_text(before)} in {seconds:.0f} s; largest difference "
        "from FP32 per output",
        ("graph", "size", "output", "largest |Δ|"),
        [
            (graph.name, graph.size or "every", name, f"{value:.1e}")
            for graph in made.manifest.graphs
            for name, value in graph.parity.items()
        ],
    )
