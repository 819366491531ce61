"""Which pictures a verb works on, and what their output files are called."""

from __future__ import annotations

import glob
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import InputError

PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""What is taken from a folder; a file named outright may be called anything."""

PICTURES_HELP = """\
IMAGES are picture files, folders (their own pictures, not those of folders in them), quoted globs
("photos/**/*.jpg" goes into folders), @list.txt (a file with one path a line) or - (such a list on stdin)."""


def find_pictures(arguments: Sequence[str]) -> list[Path]:
    """The pictures that a command line names, each once, in the order given; a folder's in the order of their names.

    Entries of a list are not looked at here: in a list of thousands, a missing picture is one failed picture.

    Raises:
        InputError: a path that does not exist, or a folder, glob or list without a picture.
    """
    found: list[Path] = []
    for argument in arguments:
        pictures = _expand(argument)
        if not pictures:
            raise InputError(f"{argument}: no picture in it", cure=f"pictures end in {', '.join(_suffixes())}")
        found += pictures
    first: dict[Path, Path] = {}
    for picture in found:
        first.setdefault(picture.resolve(), picture)
    return list(first.values())


def _expand(argument: str) -> list[Path]:
    if argument == "-":
        return _listed(sys.stdin)
    path = Path(argument)
    if path.is_dir():
        return sorted(each for each in path.iterdir() if each.suffix.lower() in PICTURE_SUFFIXES and each.is_file())
    if path.exists():
        return [path]
    if argument.startswith("@"):
        try:
            with open(argument[1:], encoding="utf-8") as lines:
                return _listed(lines)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"list {argument[1:]}: {_reason(error)}", cure="give a text file with one path a line"
            ) from error
    if glob.has_magic(argument):
        return sorted(Path(each) for each in glob.glob(argument, recursive=True) if Path(each).is_file())
    raise InputError(f"picture {argument}: no such file or folder", cure="check the path")


def _listed(lines: Iterable[str]) -> list[Path]:
    return [Path(line.strip()) for line in lines if line.strip()]


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "is not UTF-8 text"


def _suffixes() -> list[str]:
    return sorted(PICTURE_SUFFIXES)


def describe_failure(picture: Path, error: InputError) -> str:
    """What is wrong with a picture, on one line that names it."""
    text = " ".join(str(error).split())
    return text if str(picture) in text else f"picture {picture}: {text}"


def output_stems(pictures: Sequence[Path]) -> list[str]:
    """One name for each picture's outputs, so that no two pictures write the same file.

    A picture's outputs are called by its stem: `street.jpg` gives `street`. Pictures that share a stem take their
    full name (`street.jpg`, `street.png`), and those that share even that take as many folders before it as tell
    them apart (`day_street.jpg`, `night_street.jpg`). Case is ignored, as some file systems ignore it; names that
    differ by nothing else get a number.
    """
    stems = [path.stem for path in pictures]
    parts = [path.resolve().parts[1:] for path in pictures]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        for i in _shared(stems):
            stems[i] = "_".join(parts[i][-depth:])
    while shared := _shared(stems):
        for i in shared:
            stems[i] += f"-{i + 1}"
    return stems


def _shared(stems: Sequence[str]) -> list[int]:
    """Places of the names that another picture has too."""
    count = Counter(stem.lower() for stem in stems)
    return [i for i, stem in enumerate(stems) if count[stem.lower()] > 1]
