"""Options that the verbs of `ebseg vocab` share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])

SUFFIX = ".safetensors"
VOCABULARY = click.Path(path_type=Path)


def _check_output(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    """Refuse what cannot be written now, not after minutes of encoding."""
    if value.suffix.lower() != SUFFIX:
        raise click.BadParameter(f"{str(value)!r} does not end in {SUFFIX}", ctx, param)
    cure = "give a path in a folder that can be written to"
    if not value.parent.is_dir():
        raise InputError(f"output {value}: there is no folder {value.parent}", cure=cure)
    if value.is_dir() or not os.access(value.parent, os.W_OK):
        what = "is a folder" if value.is_dir() else "its folder cannot be written to"
        raise InputError(f"output {value}: {what}", cure=cure)
    return value


def output_options(command: Command) -> Command:
    """-o, --json."""
    output = click.option(
        "-o", "--output", required=True, type=VOCABULARY, callback=_check_output, help=f"File to write, *{SUFFIX}."
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="What was written, machine-readable, on stdout.")
    return output(as_json(command))


def class_options(command: Command) -> Command:
    """--classes, --file, --dataset, --seen, --new; what is encoded, and the flags set by hand."""
    options = (
        click.option("--classes", metavar="NAMES", help='Names between commas: "cat, red fox, road".'),
        click.option("--file", "file", type=VOCABULARY, help="Text, one name a line, or JSON: names or objects."),
        click.option("--dataset", metavar="NAME", help="A benchmark's classes; `ebseg vocab list` names them."),
        click.option("--seen", multiple=True, metavar="NAME", help="Call a class seen in training; may be repeated."),
        click.option("--new", multiple=True, metavar="NAME", help="Call a class new; may be repeated."),
        click.option("--cache/--no-cache", default=True, show_default=True, help="Keep encoded names between runs."),
    )
    for option in reversed(options):
        command = option(command)
    return command
