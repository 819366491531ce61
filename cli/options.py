"""Options that several verbs share, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import InputError

if TYPE_CHECKING:
    from ..runtime.vocabulary_build import Source

Command = TypeVar("Command", bound=Callable[..., Any])

SIZE_PATTERN = re.compile(r"([0-9]{1,5})[xX×]([0-9]{1,5})")


def parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """An option's callback: "480x640" to (480, 640), height first."""
    if value is None:
        return None
    match = SIZE_PATTERN.fullmatch(value.strip())
    if match is None or 0 in (int(match[1]), int(match[2])):
        raise click.BadParameter(f"{value!r} is no size; give HEIGHTxWIDTH in pixels, as 480x640", ctx, param)
    return int(match[1]), int(match[2])


def _decorate(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def vocabulary_options(command: Command) -> Command:
    """--vocabulary, --classes, --dataset; read them with `vocabulary_source`."""
    return _decorate(
        command,
        click.option(
            "--vocabulary",
            "-v",
            "vocabulary_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Vocabulary: .safetensors made by `ebseg vocab build`, .txt (a name a line) or .json.",
        ),
        click.option("--classes", metavar="NAMES", help='Names between commas: "cat, red fox, road".'),
        click.option("--dataset", metavar="NAME", help="A benchmark's classes: voc-20, ade20k-150, coco-stuff-171, …"),
    )


def engine_options(command: Command) -> Command:
    """--backend, --threads, --precision, --sentinel: how graphs are run."""
    return _decorate(
        command,
        click.option("--backend", default="auto", show_default=True, help="Execution engine; auto picks one."),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="Threads inside one operator (the engine decides); the two image encoders run side by side.",
        ),
        click.option("--precision", help="Which of the bundle's precisions; its first by default."),
        click.option(
            "--sentinel/--no-sentinel",
            default=True,
            help="On a GPU, hold the first run against the bundle's reference, and refuse engines that are wrong. On.",
        ),
    )


def overlap_option(command: Command) -> Command:
    """--overlap."""
    return click.option(
        "--overlap/--no-overlap",
        default=True,
        show_default=True,
        help="Run the two image encoders at the same time.",
    )(command)


def resize_option(command: Command) -> Command:
    """--resize."""
    return click.option(
        "--resize",
        type=click.Choice(["fit", "never"]),
        default="fit",
        show_default=True,
        help="fit: resize a picture to the canvas, aspect kept; never: use its own pixels, if they fit.",
    )(command)


def vocabulary_source(vocabulary_file: Path | None, classes: str | None, dataset: str | None) -> Source:
    """What the user chose, for `Segmenter.vocabulary`; read and checked here, before a model is loaded for it.

    Raises:
        click.UsageError: none or several are given.
        VocabularyError: the file cannot be used, names are blank or doubled, or there is no such benchmark.
    """
    given = [each for each in (vocabulary_file, classes, dataset) if each is not None]
    if len(given) != 1:
        raise click.UsageError("give exactly one of --vocabulary FILE, --classes NAMES and --dataset NAME")
    from ..runtime.class_names import benchmark_classes, classes_from_text
    from ..runtime.vocabulary_build import resolve_source

    if classes is not None:
        return classes_from_text(classes)
    if dataset is not None:
        benchmark_classes(dataset)
        return dataset
    assert vocabulary_file is not None
    return resolve_source(vocabulary_file)


def warn(message: str) -> None:
    """One line of doubt, on stderr."""
    click.echo(f"warning: {message}", err=True)


def prepare_output_folder(folder: Path) -> None:
    """Make the folder and make sure that files can be written to it: now, not after minutes of work.

    Raises:
        InputError: it cannot be made or written to.
    """
    import tempfile

    cure = "choose another folder with -o, or change its rights"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise InputError(f"output folder {folder}: a file of that name is in its place", cure=cure) from None
    except OSError as error:
        raise InputError(f"output folder {folder}: {error.strerror}", cure=cure) from error
