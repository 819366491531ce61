"""`ebseg demo`: the whole way on a real photo with a full-size model, and on held-out scenes with a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .progress import progress_bar, step_progress

if TYPE_CHECKING:
    from ..benchmarks.scenes import ExampleScene
    from ..contract import Size
    from ..runtime.bundle import Bundle
    from ..runtime.class_names import ClassEntry
    from ..runtime.segmenter import Segmenter
    from ..runtime.vocabulary import Vocabulary

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
NANO_WORDS = {"all": "seen and new words mixed", "seen": "words seen in masks", "new": "words never seen in masks"}
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
    """The held-out scenes by the training artists against their truth: with all words, and with parts of them."""
    from ..benchmarks.scenes import example_scenes, scene_classes
    from ..runtime.segmenter import Segmenter

    classes = scene_classes()
    scenes = [scene for scene in example_scenes() if scene.name.startswith("test-")]
    vocabularies = {
        "all": classes,
        "seen": tuple(entry for entry in classes if entry.seen),
        "new": tuple(entry for entry in classes if not entry.seen),
    }
    click.echo(f"{NANO}   {len(scenes)} held-out scenes")
    with Segmenter.load(_bundle(output / f"{NANO}.ebseg", NANO, threads), threads=threads) as segmenter:
        for name, words in vocabularies.items():
            with progress_bar(f"{name} words") as report:
                # Its own classes are near one another by design ("basketball", "baseball"): no warnings.
                vocabulary = segmenter.vocabulary(words, progress=report, warn=lambda message: None)
            miou, pixels = _against_truth(segmenter, vocabulary, scenes, classes, output, name)
            click.echo(
                f"  mIoU       {100 * miou:.1f} % with {NANO_WORDS[name]} ({len(words)}), "
                f"{100 * pixels:.1f} % of their pixels right"
            )
    click.echo("  measured   over the words in the truth or found, stuff included, where the truth is one of the words")
    click.echo(f"  overlays   {output / 'scene-*.overlay.png'}")
    click.echo(f"  note       {NANO_HONEST}")


def _against_truth(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    scenes: Sequence[ExampleScene],
    classes: Sequence[ClassEntry],
    output: Path,
    name: str,
) -> tuple[float, float]:
    """mIoU and the share of right pixels, 0 to 1; pixels whose class the vocabulary does not have are not counted."""
    import numpy as np
    from PIL import Image

    from ..benchmarks.agreement import label_agreement

    places = {word: place for place, word in enumerate(vocabulary.names)}
    unknown = len(places)
    lookup = np.array([places.get(entry.name, unknown) for entry in classes])
    agreements = []
    for scene in scenes:
        result = segmenter(scene.picture, vocabulary)
        result.save(output, f"scene-{scene.name}-{name}")
        with Image.open(scene.labels) as opened:
            truth = lookup[np.asarray(opened)]
        counted = truth != unknown
        if counted.any():
            agreements.append(label_agreement(truth[counted][None], result.labels[counted][None], unknown))
    total = sum(agreements[1:], agreements[0])
    return total.mean_iou, total.pixel_agreement


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
