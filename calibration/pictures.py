"""Pictures to calibrate on: any source that can give its pictures one by one, and a folder as such a source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from ..errors import InputError
from ..runtime.picture import RGB, read_picture

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationPicture:
    """One picture."""

    name: str
    pixels: RGB
    """uint8 (H, W, 3)."""
    labels: npt.NDArray[Any] | None = None
    """(H, W), indices into the source's classes, where they are known."""


class CalibrationPictures(Protocol):
    """A source of pictures. `picture(i)` gives the same picture whenever it is asked."""

    @property
    def name(self) -> str:
        """What the source is called in reports: a folder, a split."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes in the pictures' labels; none if there are no labels."""

    def __len__(self) -> int: ...

    def title(self, index: int) -> str:
        """The name of a picture, known before it is read."""

    def picture(self, index: int) -> CalibrationPicture:
        """Read or make a picture.

        Raises:
            InputError: it is damaged, empty or no picture.
        """


@dataclass(frozen=True, kw_only=True)
class FolderPictures:
    """The picture files of a folder and of the folders in it. Make one with `open_folder`."""

    name: str
    root: Path
    files: tuple[Path, ...] = field(repr=False)
    """In an order that their names decide but that is not theirs: the first n are a sample of all folders."""
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.files)

    def title(self, index: int) -> str:
        return self.files[index].relative_to(self.root).as_posix()

    def picture(self, index: int) -> CalibrationPicture:
        return CalibrationPicture(name=self.title(index), pixels=read_picture(self.files[index]))


def open_folder(root: Path) -> FolderPictures:
    """Find a folder's pictures.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    if not root.is_dir():
        raise InputError(f"pictures {root}: no such folder", cure="give a folder with PNG, JPEG or WebP files")
    files = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not files:
        raise InputError(f"pictures {root}: no picture in it", cure=f"pictures end in {', '.join(SUFFIXES)}")

    def scattered(path: Path) -> str:
        return hashlib.sha256(path.relative_to(root).as_posix().encode(errors="surrogateescape")).hexdigest()

    return FolderPictures(name=str(root), root=root, files=tuple(sorted(files, key=scattered)))
