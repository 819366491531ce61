"""`ebseg bench latency`: time every graph and the whole way, and the peak memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import engine_options, overlap_option, parse_size, vocabulary_options, vocabulary_source, warn

if TYPE_CHECKING:
    from ..benchmarks.latency import LatencyReport


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image", type=click.Path(path_type=Path), help="A picture; a synthetic one by default.")
@vocabulary_options
@click.option(
    "--classes-count",
    type=click.IntRange(1, 65535),
    default=150,
    show_default=True,
    help="Length of the synthetic vocabulary, taken when no vocabulary is given.",
)
@click.option("--size", callback=parse_size, metavar="HxW", help="Canvas; the picture chooses by default.")
@click.option("--repeats", type=click.IntRange(min=1), default=20, show_default=True, help="Measured runs.")
@click.option("--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Runs that do not count.")
@engine_options
@overlap_option
@click.option("--json", "as_json", is_flag=True, help="Everything, machine-readable, on stdout.")
def command(
    bundle: Path,
    image: Path | None,
    vocabulary_file: Path | None,
    classes: str | None,
    dataset: str | None,
    classes_count: int,
    size: tuple[int, int] | None,
    repeats: int,
    warmup: int,
    backend: str,
    threads: int | None,
    precision: str | None,
    sentinel: bool,
    overlap: bool,
    as_json: bool,
) -> None:
    """Time every graph and the whole way from a decoded picture to its label map, and the peak memory.

    Each graph is timed twice: by itself with the cores to itself, and while the pipeline runs, where the two image
    encoders share the cores. The vocabulary is encoded before, as it is in use. With a random vocabulary or picture
    the label map's share may differ from that of real ones; give --image and --vocabulary for your own.
    """
    from ..benchmarks.latency import LatencyConfig, measure_latency
    from ..contract import Size
    from ..runtime.backends import open_backend
    from ..runtime.bundle import Bundle
    from ..runtime.picture import read_picture
    from ..runtime.vocabulary_build import vocabulary_for
    from .progress import progress_bar

    config = LatencyConfig(
        repeats=repeats,
        warmup=warmup,
        size=Size(height=size[0], width=size[1]) if size else None,
        backend=backend,
        threads=threads,
        precision=precision,
        classes_count=classes_count,
        overlap=overlap,
        sentinel=sentinel,
    )
    words = None
    if vocabulary_file is not None or classes is not None or dataset is not None:
        words = vocabulary_source(vocabulary_file, classes, dataset)
    picture = None if image is None else read_picture(image)
    opened = Bundle.open(bundle)
    vocabulary = None
    if words is not None:
        with open_backend(backend, threads=threads) as encoder, progress_bar("encoding names") as report:
            vocabulary = vocabulary_for(
                opened, encoder, words, precision=precision, sentinel=sentinel, progress=report, warn=warn
            )
    with progress_bar("measuring") as report:
        result = measure_latency(
            opened,
            config,
            picture=picture,
            vocabulary=vocabulary,
            vocabulary_name=str(vocabulary_file or dataset or "--classes"),
            progress=report,
        )
    if as_json:
        from .tables import print_json

        print_json(result.as_dict())
    else:
        _print(result)


def _print(report: LatencyReport) -> None:
    from dataclasses import astuple

    from .tables import bytes_text, print_facts, print_table

    machine = report.machine
    versions = ("ebseg-deploy", "onnxruntime", "onnxruntime-gpu", "numpy")
    packages = [f"{name} {machine.packages[name]}" for name in versions if name in machine.packages]
    facts = [
        ("bundle", f"{report.bundle} ({report.model}, {report.precision}, canvas {report.canvas})"),
        ("picture", f"{report.picture[0]}x{report.picture[1]}, {report.classes} classes ({report.vocabulary})"),
        ("backend", f"{report.backend} ({report.backend_reason}), {report.threads or 'its own number of'} threads"),
        ("machine", f"{machine.cpu}, {machine.usable_cores} cores, {bytes_text(machine.memory_bytes)}"),
        ("GPU", ", ".join(gpu.name for gpu in machine.gpus) or "none"),
        ("versions", ", ".join(["Python " + machine.python, *packages])),
        ("loading", f"{report.load_ms:.0f} ms"),
        ("peak RSS", f"{bytes_text(report.peak_rss_bytes)} ({report.peak_rss_method})"),
    ]
    print_facts("Latency", facts)
    rows: list[list[object]] = []
    for name, graph in report.graphs.items():
        inside = "-" if graph.pipeline is None else f"{graph.pipeline.p50_ms:.1f}"
        rows.append([name, *_columns(astuple(graph.alone)), inside])
    rows.append(["label map", *_columns(astuple(report.label_map)), "-"])
    rows.append(["picture to label map", *_columns(astuple(report.end_to_end)), "-"])
    columns = ("milliseconds", "runs", "mean", "min", "p50", "p90", "p99", "max", "p50 in the pipeline")
    print_table(f"{report.end_to_end.runs} runs after {report.warmup} to warm up", columns, rows)


def _columns(summary: tuple[float, ...]) -> list[str]:
    runs, *latencies = summary
    return [str(runs), *(f"{value:.1f}" for value in latencies)]
