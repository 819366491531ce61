"""`ebseg demo`: the whole way on a real photo with a full-size model, and on held-out scenes with a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .progress import progress_bar, step_progress

if TYPE_CHECKING:
    from ..contract import Size
    from ..runtime.bundle import Bundle

PHOTO = Path(__file__).with_name("demo_photo.jpg")
"""Coffee, by Rachel Michetti, CC0; 400x600."""

MODEL = "ebseg-b"
SIZE = (448, 640)
"""The photo's shape with the longer side at 640: 427x640, padded to multiples of 32."""

WORDS = "coffee, cup, saucer, spoon, wooden table, shadow, cat, car"
HONEST = (
    "these weights come from a recipe and were trained on nothing: the graphs, the runtime and the numbers are real, "
    "what the colours claim to see is not"
)
NANO = "ebseg-nano"
NANO_HONEST = (
    "trained by this project on scenes like these (other arrangements of the same drawings); a small model for "
    "testing, not for photos"
)


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for the bundles and the pictures.",
)
@click.option("--image", type=click.Path(path_type=Path), help="Another picture.")
@click.option("--classes", default=WORDS, show_default=True, help="Names between commas.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads inside one operator; the engine decides.")
def command(output: Path, image: Path | None, classes: str, threads: int | None) -> None:
    """See a photo go through a full-size model, and held-out scenes through a trained one.

    Exports EBSeg-B once (about two minutes on two cores, 1.1 GB), builds a vocabulary from the words and segments the
    photo in a runtime that never imports torch. Then exports EBSeg-nano, which brings trained weights, and holds its
    label maps of four scenes against the truth.
    """
    from ..contract import Size
    from ..runtime.class_names import classes_from_text
    from ..runtime.picture import read_picture
    from .options import prepare_output_folder

    words = classes_from_text(classes)
    picture = image or PHOTO
    read_picture(picture)  # an unusable one is found before the export
    prepare_output_folder(output)
    size = Size(height=SIZE[0], width=SIZE[1])
    bundle = _bundle(output / f"{MODEL}.ebseg", MODEL, threads, seeded=True, sizes=(size,))

    from ..runtime.segmenter import Segmenter

    with Segmenter.load(bundle, threads=threads) as segmenter:
        with progress_bar("encoding names") as report:
            vocabulary = segmenter.vocabulary(words, progress=report)
        result = segmenter(picture, vocabulary)
    files = result.save(output, picture.stem)
    shares = ", ".join(f"{name} {100 * area:.0f} %" for name, area in result.areas.items())
    height, width = result.labels.shape
    click.echo(f"{MODEL}   {picture.name}, {height}x{width}, on canvas {result.canvas}")
    click.echo(f"  words      {', '.join(vocabulary.names)}")
    click.echo(f"  shares     {shares}")
    click.echo(f"  overlay    {files['overlay']}")
    click.echo(f"  note       {HONEST}")
    _scenes(output, threads)


def _scenes(output: Path, threads: int | None) -> None:
    """The held-out scenes by the training artists, with all 81 words, against their truth."""
    import numpy as np
    from PIL import Image

    from ..benchmarks.agreement import label_agreement
    from ..benchmarks.scenes import example_scenes, scene_classes
    from ..runtime.segmenter import Segmenter

    classes = scene_classes()
    agreements = []
    with Segmenter.load(_bundle(output / f"{NANO}.ebseg", NANO, threads), threads=threads) as segmenter:
        with progress_bar("encoding names") as report:
            # Its own classes are near one another by design ("basketball", "baseball"): no warnings.
            vocabulary = segmenter.vocabulary(classes, progress=report, warn=lambda message: None)
        for scene in example_scenes():
            if not scene.name.startswith("test-"):
                continue
            result = segmenter(scene.picture, vocabulary)
            result.save(output, f"scene-{scene.name}")
            with Image.open(scene.labels) as truth:
                agreements.append(label_agreement(np.asarray(truth), result.labels, len(classes)))
    total = sum(agreements[1:], agreements[0])
    click.echo(f"{NANO}   {len(agreements)} held-out scenes, {len(classes)} words")
    click.echo(
        f"  mIoU       {100 * total.mean_iou:.1f} % over the classes in truth or label maps, stuff included; "
        f"{100 * total.pixel_agreement:.1f} % of the pixels right"
    )
    click.echo(f"  overlays   {output / 'scene-test-*.overlay.png'}")
    click.echo(f"  note       {NANO_HONEST}")


def _bundle(
    path: Path, model: str, threads: int | None, *, seeded: bool = False, sizes: tuple[Size, ...] = ()
) -> Bundle:
    """A bundle of the demo: the one an earlier run left, if it is whole, else a new one."""
    from ..errors import BundleError
    from ..runtime.bundle import Bundle

    if path.exists():
        try:
            return Bundle.open(path)
        except BundleError as error:
            click.echo(f"{error.message}: exporting again", err=True)

    from ..export.run import ExportRequest, export_checkpoint

    click.echo(f"exporting {model} to {path}, once", err=True)
    request = ExportRequest(
        model=model,
        output=path,
        seeded=seeded,
        sizes=sizes,
        overwrite=path.exists(),
        threads=threads,
        command="ebseg demo",
    )
    with step_progress("export") as report:
        return export_checkpoint(request, progress=report)
