"""What a graph is given while its activations are counted: the pictures, or what other graphs make of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..contract import CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER, GraphName, Size
from ..errors import CalibrationError
from ..runtime.backends import OpenGraph
from ..runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ..runtime.canvas import choose_canvas, place_picture
from ..runtime.hashing import file_sha256
from .survey import SurveyedPictures

Array = npt.NDArray[Any]


class Feeds(Protocol):
    """The inputs of a graph for one run after the other; made anew each time they are asked for, never kept."""

    @property
    def identity(self) -> str:
        """Changes whenever the inputs do: counts of other inputs are not continued."""

    def __len__(self) -> int:
        """How many runs."""

    def label(self, index: int) -> str:
        """What the inputs of a run were made of, for errors."""

    def feed(self, index: int) -> Mapping[str, Array]:
        """All inputs of the graph for one run, by name."""


class PictureFeeds:
    """Pictures on a canvas: the inputs of the two image encoders.

    Args:
        pictures: what to run on.
        size: the canvas.
        batch: pictures per run; the last run is filled up with the first pictures again.
    """

    def __init__(self, pictures: SurveyedPictures, size: Size, *, batch: int = 1) -> None:
        self._pictures = pictures
        self._size = size
        self._batch = batch

    @property
    def identity(self) -> str:
        return hashlib.sha256(f"{self._pictures.identity} {self._size} {self._batch}".encode()).hexdigest()

    def __len__(self) -> int:
        return -(-len(self._pictures) // self._batch)

    def label(self, index: int) -> str:
        return ", ".join(self._pictures.records[place].name for place in self._places(index))

    def feed(self, index: int) -> dict[str, Array]:
        """`image` uint8 (B, 3, H, W) and `valid_size` int32 (B, 2)."""
        canvases, sizes = [], []
        for place in self._places(index):
            pixels = self._pictures.pixels(place)
            placement = choose_canvas(pixels.shape[0], pixels.shape[1], [self._size])
            canvases.append(place_picture(pixels, placement))
            sizes.append(placement.valid_size)
        return {"image": np.stack(canvases), "valid_size": np.array(sizes, np.int32)}

    def _places(self, index: int) -> list[int]:
        first = index * self._batch
        return [place % len(self._pictures) for place in range(first, first + self._batch)]


class DecoderFeeds:
    """What the image encoders make of pictures: the inputs of the decoder. Use as a context manager.

    Args:
        pictures: the encoders' inputs.
        encoders: .onnx file of either encoder: the very ones that the decoder will stand behind, quantised or not.
        threads: for ONNX Runtime; None lets it choose.

    Raises:
        CalibrationError: an encoder is missing.
        BackendError: ONNX Runtime refuses an encoder.
    """

    def __init__(
        self, pictures: PictureFeeds, encoders: Mapping[GraphName, Path], *, threads: int | None = None
    ) -> None:
        for name in (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER):
            if name not in encoders:
                raise CalibrationError(f"decoder: no {name} to feed it", cure="give both image encoders' files")
        self.hashes = {name: graph_hash(encoders[name]) for name in sorted(encoders)}
        self._pictures = pictures
        self._files = dict(encoders)
        self._backend = OnnxRuntimeBackend(threads=threads)
        self._graphs: list[OpenGraph] = []

    @property
    def identity(self) -> str:
        return hashlib.sha256(f"{self._pictures.identity} {sorted(self.hashes.items())}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._pictures)

    def label(self, index: int) -> str:
        return self._pictures.label(index)

    def feed(self, index: int) -> dict[str, Array]:
        """All outputs of both encoders."""
        if not self._graphs:
            self._graphs = [self._backend.open(file, name=name) for name, file in self._files.items()]
        given = self._pictures.feed(index)
        outputs: dict[str, Array] = {}
        for graph in self._graphs:
            outputs.update(self._backend.run(graph, given))
        return outputs

    def __enter__(self) -> DecoderFeeds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backend.close()
        self._graphs.clear()


def graph_hash(model: Path) -> str:
    """The sha256 of a graph: of its .onnx file and of the weights it refers to.

    Raises:
        CalibrationError: a file is missing or cannot be read.
    """
    import onnx

    try:
        hashes = [file_sha256(model)]
        proto = onnx.load(model, load_external_data=False)
        files = {
            entry.value
            for weight in proto.graph.initializer
            for entry in weight.external_data
            if entry.key == "location"
        }
        hashes += [f"{name} {file_sha256(model.parent / name)}" for name in sorted(files)]
    except OSError as error:
        raise CalibrationError(
            f"graph {model}: {error.filename or ''}: {error.strerror}", cure="check it with `ebseg verify`"
        ) from error
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
