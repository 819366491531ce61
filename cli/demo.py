"""`ebseg demo`: the whole way on a real photo, from weights to label map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .progress import progress_bar, step_progress

if TYPE_CHECKING:
    from ..runtime.bundle import Bundle

PHOTO = Path(__file__).with_name("demo_photo.jpg")
"""Coffee, by Rachel Michetti, CC0; 400x600."""

MODEL = "ebseg-b"
SIZE = (448, 640)
"""The photo's shape with the longer side at 640: 427x640, padded to multiples of 32."""

WORDS = "coffee, cup, saucer, spoon, wooden table, shadow, cat, car"
HONEST = (
    "These weights come from a recipe and were trained on nothing: the graphs, the runtime and the numbers are real, "
    "what the colours claim to see is not."
)


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for the bundle and the pictures.",
)
@click.option("--image", type=click.Path(path_type=Path), help="Another picture.")
@click.option("--classes", default=WORDS, show_default=True, help="Names between commas.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads inside one operator; the engine decides.")
def command(output: Path, image: Path | None, classes: str, threads: int | None) -> None:
    """See a real photo go through a full-size EBSeg-B.

    Exports the five graphs once (about two minutes on two cores, 1.1 GB), then builds a vocabulary from the words and
    segments the photo with the exported graphs in a runtime that never imports torch.
    """
    from ..runtime.class_names import classes_from_text
    from ..runtime.picture import read_picture
    from .options import prepare_output_folder

    words = classes_from_text(classes)
    picture = image or PHOTO
    read_picture(picture)  # an unusable one is found before the export
    prepare_output_folder(output)
    bundle = _bundle(output / f"{MODEL}.ebseg", threads)

    from ..runtime.segmenter import Segmenter

    with Segmenter.load(bundle, threads=threads) as segmenter:
        with progress_bar("encoding names") as report:
            vocabulary = segmenter.vocabulary(words, progress=report)
        result = segmenter(picture, vocabulary)
    files = result.save(output, picture.stem)
    shares = ", ".join(f"{name} {100 * area:.0f} %" for name, area in result.areas.items())
    click.echo(
        f"picture   {picture.name}, {result.labels.shape[0]}x{result.labels.shape[1]}, on canvas {result.canvas}"
    )
    click.echo(f"words     {', '.join(vocabulary.names)}")
    click.echo(f"labels    {files['labels']}")
    click.echo(f"overlay   {files['overlay']}")
    click.echo(f"shares    {shares}")
    click.echo(f"note      {HONEST}")


def _bundle(path: Path, threads: int | None) -> Bundle:
    """The demo's bundle: the one an earlier run left, if it is whole, else a new one."""
    from ..errors import BundleError
    from ..runtime.bundle import Bundle

    if path.exists():
        try:
            return Bundle.open(path)
        except BundleError as error:
            click.echo(f"{error.message}: exporting again", err=True)

    from ..contract import Size
    from ..export.run import ExportRequest, export_checkpoint

    click.echo(f"exporting {MODEL} with seeded weights to {path}: once, about two minutes on two cores", err=True)
    request = ExportRequest(
        model=MODEL,
        output=path,
        seeded=True,
        sizes=(Size(height=SIZE[0], width=SIZE[1]),),
        overwrite=path.exists(),
        threads=threads,
        command="ebseg demo",
    )
    with step_progress("export") as report:
        return export_checkpoint(request, progress=report)
