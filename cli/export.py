"""`ebseg export`: from a checkpoint to a bundle."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import click

from .options import parse_size
from .progress import step_progress


@click.command()
@click.option("--model", "model_name", required=True, help="ebseg-b, ebseg-l or ebseg-nano.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Weights: a published .pth or a .safetensors. ebseg-nano has its own by default.",
)
@click.option("--seeded", is_flag=True, help="Take untrained weights from a recipe instead.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="HxW",
    callback=lambda ctx, param, values: tuple(parse_size(ctx, param, value) for value in values),
    help="Canvas, multiples of 32; may be repeated.  [default: 640x640; ebseg-nano 256x256]",
)
@click.option("--batch", type=click.IntRange(min=1, max=1024), default=1, show_default=True, help="Pictures per run.")
@click.option("--dynamic-batch", is_flag=True, help="Let a run have fewer pictures than --batch, too.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle to make, e.g. b.ebseg."
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads for torch and the check.  Default: all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model_name: str,
    checkpoint: Path | None,
    seeded: bool,
    sizes: tuple[tuple[int, int], ...],
    batch: int,
    dynamic_batch: bool,
    output: Path,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs.

    Traces the five graphs, runs each in ONNX Runtime against PyTorch, and writes the bundle only when all agree.
    """
    if checkpoint is not None and seeded:
        raise click.UsageError("give --checkpoint or --seeded, not both")
    from ..contract import Size
    from ..export.run import ExportRequest, export_checkpoint
    from .tables import bytes_text, print_json, print_table

    request = ExportRequest(
        model=model_name,
        checkpoint=checkpoint,
        seeded=seeded,
        sizes=tuple(Size(height=height, width=width) for height, width in sizes),
        batch=batch,
        dynamic_batch=dynamic_batch,
        output=output,
        overwrite=overwrite,
        threads=threads,
        command=shlex.join(["ebseg", *sys.argv[1:]]),
    )
    start = time.perf_counter()
    with step_progress("export") as report:
        bundle = export_checkpoint(request, progress=report)
    seconds = time.perf_counter() - start
    total = sum(record.bytes for record in bundle.manifest.files.values())
    if as_json:
        graphs = [
            {"graph": graph.name, "size": graph.size and str(graph.size), "file": graph.file, "parity": graph.parity}
            for graph in bundle.manifest.graphs
        ]
        print_json({"bundle": str(output), "seconds": round(seconds, 1), "bytes": total, "graphs": graphs})
        return
    print_table(
        f"{output}: {bytes_text(total)} in {seconds:.0f} s; largest |ONNX Runtime − torch| per output",
        ("graph", "size", "output", "largest |Δ|"),
        [
            (graph.name, graph.size or "every", name, f"{value:.1e}")
            for graph in bundle.manifest.graphs
            for name, value in graph.parity.items()
        ],
    )
