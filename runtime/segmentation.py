"""What a picture's segmentation is: a label map, and what is needed to read it."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from ..contract import Size
from ..errors import InputError
from .atomic_write import write_atomically
from .overlay import LegendRow, add_legend, draw_overlay
from .picture import RGB


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """One picture's label map."""

    labels: npt.NDArray[np.uint8 | np.uint16]
    """(H, W): the index into `names` of each pixel's class; uint8 for up to 256 classes, else uint16."""
    names: tuple[str, ...]
    """Of all N classes of the vocabulary."""
    palette: npt.NDArray[np.uint8]
    """(N, 3) RGB."""
    picture: RGB
    """(h, w, 3): the picture that was segmented, at its own size."""
    canvas: Size
    """The canvas it was laid on."""
    valid_size: tuple[int, int]
    """Rows and columns of the canvas that held the picture."""
    scores: npt.NDArray[np.float32] | None = None
    """(K, H, W) scores of the classes `scored`, if asked for: sums of probability times mask, not normalised."""
    scored: tuple[str, ...] = ()
    """Names of the classes that `scores` holds."""

    @cached_property
    def areas(self) -> dict[str, float]:
        """Part of the picture, 0 to 1, of each class that is in it; largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        order = np.argsort(-counts, kind="stable")
        return {self.names[i]: int(counts[i]) / self.labels.size for i in order if counts[i]}

    def overlay(self, *, legend: bool = True) -> Image.Image:
        """The class colours over the picture, at the label map's size, with the legend below unless told otherwise."""
        drawn = draw_overlay(self.picture, self.labels, self.palette)
        if not legend:
            return drawn
        index = {name: i for i, name in enumerate(self.names)}
        rows = []
        for name, area in self.areas.items():
            red, green, blue = (int(value) for value in self.palette[index[name]])
            rows.append(LegendRow(index=index[name], name=name, colour=(red, green, blue), area=area))
        return add_legend(drawn, rows)

    def label_image(self) -> Image.Image:
        """The label map as an image: class indices with a palette up to 256 classes, sixteen-bit grey beyond."""
        image = Image.fromarray(self.labels)
        if self.labels.dtype == np.uint8:
            image.putpalette(self.palette.tobytes())
        return image

    def to_dict(self) -> dict[str, Any]:
        """The result without pixels, of plain Python types, for JSON."""
        index = {name: i for i, name in enumerate(self.names)}
        return {
            "size": list(self.labels.shape),
            "canvas": str(self.canvas),
            "valid_size": list(self.valid_size),
            "classes": [
                {
                    "index": index[name],
                    "name": name,
                    "area": area,
                    "colour": [int(value) for value in self.palette[index[name]]],
                }
                for name, area in self.areas.items()
            ],
        }

    def save(
        self, folder: str | os.PathLike[str], stem: str, *, overlay: bool = True, summary: bool = False
    ) -> dict[str, Path]:
        """Write the result to files, each whole or not at all.

        Args:
            folder: made if it is missing.
            stem: start of the files' names.
            overlay: also write the overlay with its legend.
            summary: also write `to_dict()` as JSON.

        Returns:
            "labels" -> `<stem>.labels.png`, "overlay" -> `<stem>.overlay.png`, "summary" -> `<stem>.json`.

        Raises:
            InputError: the folder cannot be made or written to.
        """
        contents = {"labels": (f"{stem}.labels.png", _png(self.label_image()))}
        if overlay:
            contents["overlay"] = (f"{stem}.overlay.png", _png(self.overlay()))
        if summary:
            contents["summary"] = (f"{stem}.json", msgspec.json.format(msgspec.json.encode(self.to_dict())))
        target = Path(folder)
        paths = {kind: target / name for kind, (name, _) in contents.items()}
        try:
            target.mkdir(parents=True, exist_ok=True)
            for kind, (_, content) in contents.items():
                write_atomically(paths[kind], content)
        except OSError as error:
            raise InputError(
                f"output folder {target}: {error.strerror}", cure="choose another folder, or change its rights"
            ) from error
        return paths


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=4)  # level 6, the default, is twice as slow and 3 % smaller
    return buffer.getvalue()
