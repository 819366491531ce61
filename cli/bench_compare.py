"""`ebseg bench compare`: a bundle against the published order in eager torch."""

from __future__ import annotations

from pathlib import Path

import click

from .options import engine_options, overlap_option, parse_size
from .progress import progress_bar


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights of the eager side; seeded by default.")
@click.option("--size", callback=parse_size, metavar="HxW", help="Canvas; the bundle's first by default.")
@click.option("--classes-count", type=click.IntRange(1, 65535), default=150, show_default=True, help="Random words.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Measured pairs.")
@click.option("--warmup", type=click.IntRange(min=0), default=1, show_default=True, help="Pairs that do not count.")
@engine_options
@overlap_option
@click.option("--json", "as_json", is_flag=True, help="Everything, machine-readable, on stdout; `ratio` first.")
def command(
    bundle: Path,
    checkpoint: Path | None,
    size: tuple[int, int] | None,
    classes_count: int,
    repeats: int,
    warmup: int,
    backend: str,
    threads: int | None,
    precision: str | None,
    sentinel: bool,
    overlap: bool,
    as_json: bool,
) -> None:
    """Time a bundle against the published order of computation in eager torch, in turn, in one run.

    Both sides take the same picture and words, from the decoded picture to the label map, each in a process of its
    own with the same number of threads. Needs the `export` extra.
    """
    from ..benchmarks.compare import CompareConfig, compare_with_eager
    from ..contract import Size
    from .tables import bytes_text, print_facts, print_json

    config = CompareConfig(
        bundle=bundle,
        checkpoint=checkpoint,
        size=Size(height=size[0], width=size[1]) if size else None,
        classes_count=classes_count,
        repeats=repeats,
        warmup=warmup,
        threads=threads,
        backend=backend,
        precision=precision,
        overlap=overlap,
        sentinel=sentinel,
    )
    with progress_bar("comparing") as report:
        result = compare_with_eager(config, progress=report)
    if as_json:
        print_json(result.as_dict())
        return
    agreement = "weights differ" if result.label_agreement is None else f"{100 * result.label_agreement:.3f} %"
    versions = ("ebseg-deploy", "onnxruntime", "onnxruntime-gpu", "numpy", "torch")
    packages = [f"{name} {result.machine.packages[name]}" for name in versions if name in result.machine.packages]
    print_facts(
        f"{result.ratio:.2f}× faster than the published order in eager torch",
        [
            ("ratio", f"{result.ratio:.2f} (pairs {result.ratio_min:.2f} to {result.ratio_max:.2f})"),
            ("eager torch", f"p50 {result.eager.p50_ms:.0f} ms, peak RSS {bytes_text(result.eager_peak_rss_bytes)}"),
            ("bundle", f"p50 {result.bundle.p50_ms:.0f} ms, peak RSS {bytes_text(result.bundle_peak_rss_bytes)}"),
            ("equal labels", agreement),
            ("what", f"{result.model} {result.precision}, canvas {result.canvas}, {result.classes} classes"),
            ("how", f"{result.eager.runs} pairs after {warmup} to warm up, {result.threads or 'all'} threads a side"),
            ("machine", f"{result.machine.cpu}, {result.machine.usable_cores} cores"),
            ("versions", ", ".join(["Python " + result.machine.python, *packages])),
        ],
    )
