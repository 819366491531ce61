"""`ebseg segment`: label the pixels of pictures with the words of a vocabulary."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .options import (
    engine_options,
    overlap_option,
    parse_size,
    prepare_output_folder,
    resize_option,
    vocabulary_options,
    vocabulary_source,
    warn,
)
from .pictures import PICTURES_HELP, describe_failure, find_pictures, output_stems

if TYPE_CHECKING:
    from ..runtime.segmenter import Segmentation, Segmenter
    from ..runtime.vocabulary import Vocabulary

MOST_CLASSES = 6
"""Classes named on a picture's line, the largest first; --json has all."""


@click.command(epilog=PICTURES_HELP)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True)
@vocabulary_options
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--overlay/--no-overlay", default=True, show_default=True, help="Write the overlay picture too.")
@resize_option
@click.option("--output-size", callback=parse_size, metavar="HxW", help="Size of label maps; the picture's by default.")
@engine_options
@overlap_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable results on stdout, when all are done.")
@click.option("--json-lines", is_flag=True, help="Each picture's result as a line of JSON on stdout, when it is done.")
@click.pass_context
def command(
    ctx: click.Context,
    bundle: Path,
    images: tuple[str, ...],
    vocabulary_file: Path | None,
    classes: str | None,
    dataset: str | None,
    output: Path,
    overlay: bool,
    resize: str,
    output_size: tuple[int, int] | None,
    backend: str,
    threads: int | None,
    precision: str | None,
    sentinel: bool,
    overlap: bool,
    as_json: bool,
    json_lines: bool,
) -> None:
    """Label every pixel of IMAGES with a class of a vocabulary.

    Writes to the output folder, for each picture: STEM.labels.png, whose values are class indices (8 bits with a
    palette for up to 256 classes, else 16 bits), and STEM.overlay.png, the picture with its classes in colour and a
    legend. Pictures that share a stem keep their suffix, and if need be their folder, in the name.

    A picture that cannot be used is named on stderr, the others are done, and the exit code is 1.
    """
    if as_json and json_lines:
        raise click.UsageError("give one of --json and --json-lines")
    pictures = find_pictures(images)
    words = vocabulary_source(vocabulary_file, classes, dataset)
    prepare_output_folder(output)

    from ..runtime.segmenter import Segmenter
    from .progress import progress_bar
    from .tables import print_json, print_json_line

    failed: dict[Path, str] = {}
    entries: list[dict[str, Any]] = []
    with Segmenter.load(
        bundle, backend=backend, threads=threads, precision=precision, overlap=overlap, sentinel=sentinel
    ) as segmenter:
        if segmenter.backend.name == "fake":
            warn("backend fake invents its numbers: the labels mean nothing")
        with progress_bar("encoding names") as report:
            vocabulary = segmenter.vocabulary(words, progress=report, warn=warn)
        stems = dict(zip(pictures, output_stems(pictures), strict=True))
        options = {"resize": resize, "output_size": output_size}
        with progress_bar("pictures") as report:
            report(0, len(pictures))
            for picture, outcome, seconds in _segment_each(segmenter, vocabulary, pictures, options):
                if isinstance(outcome, InputError):
                    failed[picture] = describe_failure(picture, outcome)
                    click.echo(f"error: {failed[picture]}", err=True)
                    if json_lines:
                        print_json_line({"picture": str(picture), "error": failed[picture]})
                else:
                    files = outcome.save(output, stems[picture], overlay=overlay)
                    entries.append(_entry(picture, outcome, files, seconds))
                    if json_lines:
                        print_json_line(entries[-1])
                    elif not as_json:
                        click.echo(_line(picture, outcome, files, seconds))
                report(len(entries) + len(failed), len(pictures))
        if as_json:
            print_json(
                {
                    "bundle": str(bundle),
                    "model": segmenter.bundle.model.name,
                    "precision": segmenter.precision,
                    "backend": segmenter.backend.name,
                    "backend_reason": segmenter.backend.reason,
                    "names": list(vocabulary.names),
                    "pictures": entries,
                    "failed": [{"picture": str(picture), "error": error} for picture, error in failed.items()],
                }
            )
    if failed and len(pictures) > 1:
        click.echo(f"error: {len(failed)} of {len(pictures)} pictures failed, the others are done", err=True)
    ctx.exit(1 if failed else 0)


def _segment_each(
    segmenter: Segmenter, vocabulary: Vocabulary, pictures: Sequence[Path], options: dict[str, Any]
) -> Iterator[tuple[Path, Segmentation | InputError, float]]:
    """Each picture with its result or what is wrong with it, and the seconds it took.

    As many together as the bundle's graphs take; when one of them cannot be used, they are done one by one.
    """
    batch = segmenter.bundle.manifest.batch
    for first in range(0, len(pictures), batch):
        waiting = [list(pictures[first : first + batch])]
        while waiting:
            together = waiting.pop(0)
            start = time.perf_counter()
            try:
                results: Sequence[Segmentation | InputError] = segmenter.batch(together, vocabulary, **options)
            except InputError as error:
                if len(together) > 1:
                    waiting = [[picture] for picture in together]
                    continue
                results = [error]
            seconds = (time.perf_counter() - start) / len(together)
            for picture, result in zip(together, results, strict=True):
                yield picture, result, seconds


def _entry(picture: Path, result: Segmentation, files: dict[str, Path], seconds: float) -> dict[str, Any]:
    """A picture's part of the JSON."""
    paths = {kind: str(path) for kind, path in files.items()}
    return {"picture": str(picture), **paths, "seconds": round(seconds, 4), **result.to_dict()}


def _line(picture: Path, result: Segmentation, files: dict[str, Path], seconds: float) -> str:
    """A picture's line for people."""
    shown = list(result.areas.items())[:MOST_CLASSES]
    largest = [f"{name} {100 * area:.0f} %" if area >= 0.01 else f"{name} <1 %" for name, area in shown]
    more = len(result.areas) - len(largest)
    shares = f"{', '.join(largest)}{f', {more} more' * (more > 0)}"
    return f"{picture} -> {files['labels']}  canvas {result.canvas}  {seconds:.2f} s  {shares}"
