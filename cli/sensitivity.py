"""`ebseg sensitivity`: what INT8 costs, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .calibration_pictures import PICTURES_HELP, EmojiScenePictures, survey_pictures
from .options import parse_size, prepare_output_folder, vocabulary_options, vocabulary_source
from .progress import step_progress

if TYPE_CHECKING:
    from ..calibration.observers import Observer
    from ..calibration.ranges import Ranges
    from ..calibration.sensitivity import SensitivityReport
    from ..calibration.survey import SurveyedPictures
    from ..contract import QuantisedType, Size
    from ..export.precision.recipes import Recipe
    from ..runtime.bundle import Bundle
    from ..runtime.vocabulary_build import Source

DEFAULT_WORDS = "ade20k-150"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--images", required=True, metavar="SOURCE", help=f"To measure on. {PICTURES_HELP}")
@click.option("--limit", type=click.IntRange(min=1), default=60, show_default=True, help="Most pictures to use.")
@click.option(
    "--precision", type=click.Choice(["int8", "fp8"]), default="int8", show_default=True, help="To quantise to."
)
@click.option("--calibrate-on", metavar="SOURCE", help="Pictures to find the ranges on; those of --images by default.")
@click.option(
    "--ranges", "ranges_file", type=click.Path(path_type=Path), help="Ranges measured before, in place of calibrating."
)
@click.option("--observer", default="max", show_default=True, metavar="RULE", help="As for `ebseg calibrate`.")
@click.option("--size", callback=parse_size, metavar="HxW", help="Canvas; the bundle's first by default.")
@vocabulary_options
@click.option("--data", type=click.Path(path_type=Path), help="Folder of `ebseg train fetch-data`, for emoji-scenes.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads inside one operator; the engine decides.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for sensitivity.json and sensitivity.md.")
@click.option("--json", "as_json", is_flag=True, help="Everything, machine-readable, on stdout.")
def command(
    bundle: Path,
    images: str,
    limit: int,
    precision: QuantisedType,
    calibrate_on: str | None,
    ranges_file: Path | None,
    observer: str,
    size: tuple[int, int] | None,
    vocabulary_file: Path | None,
    classes: str | None,
    dataset: str | None,
    data: Path | None,
    threads: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Quantise each graph, and each block of it alone, and say what that costs in labels, embeddings and mIoU.

    The emoji scenes bring their classes and their truth; for a folder give the words to look for (ade20k-150 by
    default), and label maps are held against FP32's alone. Results are printed from the costliest block down.
    """
    from ..calibration.observers import observer_named
    from ..calibration.ranges import read_ranges
    from ..calibration.sensitivity import measure_sensitivity
    from ..contract import CLIP_IMAGE_ENCODER, Size
    from ..export.precision.derive import check_source
    from ..export.precision.recipes import EVERY_PRODUCT
    from ..runtime.bundle import Bundle
    from ..runtime.segmenter import Segmenter
    from .tables import print_json

    rule = observer_named(observer)
    recipe = EVERY_PRODUCT[precision]
    if output is not None:
        prepare_output_folder(output)
    source = Bundle.open(bundle)
    check_source(source)
    canvas = source.sizes[0] if size is None else Size(height=size[0], width=size[1])
    source.graph(CLIP_IMAGE_ENCODER, canvas)  # refuses a canvas that is not there, before the pictures are looked at
    pictures = survey_pictures(images, limit, data=data)
    background: tuple[str, ...] = ()
    if isinstance(pictures.source, EmojiScenePictures):
        words, background = _scene_words()
    else:
        no_words = vocabulary_file is None and classes is None and dataset is None
        words = vocabulary_source(vocabulary_file, classes, DEFAULT_WORDS if no_words else dataset)
    if ranges_file is not None:
        ranges = read_ranges(ranges_file)
    else:
        others = pictures if calibrate_on is None else survey_pictures(calibrate_on, limit, data=data)
        ranges = _calibrated(source, others, recipe, rule, canvas, threads)
    with Segmenter.load(source, "onnxruntime", threads=threads) as segmenter:
        vocabulary = segmenter.vocabulary(words, warn=lambda line: None)
    with step_progress("sensitivity", remaining=True) as report:
        found = measure_sensitivity(
            source,
            recipe,
            ranges,
            pictures,
            vocabulary,
            background=background,
            size=canvas,
            threads=threads,
            progress=report,
        )
    if output is not None:
        _write(output, found)
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found)


def _scene_words() -> tuple[Source, tuple[str, ...]]:
    """The emoji scenes' classes, and those that are background."""
    from ..runtime.class_names import ClassEntry
    from ..training.emoji_classes import CLASSES, STUFF_NAMES

    return [ClassEntry(name=each.name, seen=each.seen) for each in CLASSES], tuple(STUFF_NAMES)


def _calibrated(
    bundle: Bundle, pictures: SurveyedPictures, recipe: Recipe, observer: Observer, canvas: Size, threads: int | None
) -> Ranges:
    """Ranges of one canvas: the others are not judged."""
    from ..calibration.calibrate import CalibrationConfig, calibrate
    from ..calibration.quantize_bundle import tensors_to_observe
    from ..runtime.cache import cache_folder

    config = CalibrationConfig(
        observer=observer,
        tensors=tensors_to_observe(recipe),
        sizes=(canvas,),
        cache=cache_folder("calibration"),
        threads=threads,
    )
    with step_progress("calibrating", remaining=True) as report:
        return calibrate(bundle, pictures, config, progress=report)


def _write(folder: Path, found: SensitivityReport) -> None:
    import json

    from ..calibration.sensitivity_table import markdown
    from ..runtime.atomic_write import write_atomically

    write_atomically(folder / "sensitivity.json", (json.dumps(found.as_dict(), indent=2) + "\n").encode())
    write_atomically(folder / "sensitivity.md", markdown(found).encode())


def _print(found: SensitivityReport) -> None:
    from ..calibration.sensitivity_table import COLUMNS, cells, costliest_first, title
    from .tables import print_table

    print_table(title(found), COLUMNS, [cells(row, found) for row in costliest_first(found)])
