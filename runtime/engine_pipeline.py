"""A bundle's engines in their order on a GPU: canvases and words in, mask logits and class probabilities out.

The counterpart of `pipeline.Pipeline` for a TensorRtBackend. `Segmenter` takes it by itself; a host that has its
pictures on the GPU already, or wants the results there, uses it directly:

    pipeline = EnginePipeline(bundle, backend, precision="fp16")
    with pipeline.on_device(canvas, {"image": cupy_image, "valid_size": sizes}, words) as found:
        masks = cupy.asarray(found.mask_logits)
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..contract import ADAB_DECODER, CLIP_IMAGE_ENCODER, OPEN_VOCAB_HEAD, GraphName, Size
from ..errors import BackendError
from .backends import OpenGraph
from .backends.tensorrt_backend import TensorRtBackend, engine_of
from .bundle import Bundle
from .device import DeviceArray
from .engine_lane import LANE_GRAPHS, PICTURE, RESULTS, WORDS, EngineLane
from .kernels import DeviceLabelMap
from .label_map import Labels, label_map
from .pipeline import Array, Prediction
from .sentinel import sentinel_for


@dataclass(frozen=True, kw_only=True, eq=False)
class DevicePrediction:
    """What the engines say of a batch of canvases, on the GPU; valid until the `with` block ends."""

    mask_logits: DeviceArray
    """(B, Q, H/4, W/4), before the sigmoid."""
    class_probabilities: DeviceArray
    """(B, Q, N)."""
    stream: int
    """The run is on this stream: order work after it, and let that work be done when the `with` block ends."""


class EnginePipeline:
    """Opens engines at their first use and runs them; may be used by several threads.

    Args:
        bundle: what the engines were built from.
        backend: loads them.
        precision: one of the bundle's.
        overlap: run the two image encoders side by side, on two streams.
        cuda_graphs: launch the engines as one CUDA graph from the second picture on.
        concurrent_runs: how many runs may go on at once; each takes contexts and buffers of its own, and a thread
            beyond them waits.
        sentinel: hold the first run on this GPU against the bundle's reference (`sentinel.py`).

    Raises:
        BundleError: a canvas of the bundle has no graphs of this precision.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: TensorRtBackend,
        *,
        precision: str,
        overlap: bool = True,
        cuda_graphs: bool = True,
        concurrent_runs: int = 2,
        sentinel: bool = True,
    ) -> None:
        for size in bundle.sizes:  # an unknown precision is an error now, not with the first picture
            bundle.graph(ADAB_DECODER, size, precision)
        if concurrent_runs < 1:
            raise BackendError(f"backend {backend.name}: {concurrent_runs} concurrent runs", cure="give 1 or more")
        self._bundle = bundle
        self._backend = backend
        self._precision = precision
        self._overlap = overlap
        self._cuda_graphs = cuda_graphs
        self._sentinel = sentinel_for(bundle, backend, precision) if sentinel else None
        self._graphs: dict[tuple[GraphName, Size | None], OpenGraph] = {}
        self._checked: set[Size] = set()
        """Canvases whose engines are loaded and passed the sentinel."""
        self._free: dict[Size, list[EngineLane]] = {}
        self._label_map: DeviceLabelMap | None = None
        self._label_map_failed = False
        self._lock = threading.Lock()
        self._concurrent_runs = concurrent_runs
        self._places = threading.Semaphore(concurrent_runs)
        self._running: list[int] = []
        """Threads whose runs go on."""
        self._closing = threading.Lock()

    def run(self, canvas: Size, picture: Mapping[str, Any], words: Mapping[str, Array]) -> Prediction:
        """Run the two image encoders, the decoder and the head.

        Args:
            canvas: one of the bundle's sizes.
            picture: `image` uint8 (B, 3, H, W) and `valid_size` int32 (B, 2), B the bundle's batch; numpy arrays, or
                GPU arrays with `__cuda_array_interface__`, which are copied on the GPU.
            words: `text_embeddings` float32 (N+1, D) and `seen` float32 (N,).

        Raises:
            BackendError: an engine could not be opened or run, or a tensor does not fit.
        """
        with self._lane(canvas) as lane:
            lane.start(picture, words)
            found = lane.fetch(*RESULTS)
        return Prediction(**{name: array.astype(np.float32, copy=False) for name, array in found.items()})

    @contextmanager
    def on_device(
        self, canvas: Size, picture: Mapping[str, Any], words: Mapping[str, Array]
    ) -> Iterator[DevicePrediction]:
        """As `run`, and leave the results on the GPU. It does not wait for the run; leaving the block does."""
        with self._lane(canvas) as lane:
            lane.start(picture, words)
            yield DevicePrediction(
                mask_logits=lane.result("mask_logits"),
                class_probabilities=lane.result("class_probabilities"),
                stream=lane.stream,
            )
            lane.wait()

    def label_maps(
        self,
        canvas: Size,
        picture: Mapping[str, Any],
        words: Mapping[str, Array],
        sizes: Sequence[tuple[tuple[int, int], tuple[int, int]]],
    ) -> list[Labels]:
        """As `run`, and on to label maps, which are made on the GPU as well: the only thing to come back.

        Where NVRTC is missing, they are made on the host, with one warning.

        Args:
            sizes: valid size and output size, rows and columns, of each of the first pictures of the batch.

        Returns:
            (H, W) uint8 for up to 256 classes, else uint16, for each of `sizes`.
        """
        kernel = self._kernel()
        if kernel is None:
            found = self.run(canvas, picture, words)
            return [
                label_map(found.mask_logits[row], found.class_probabilities[row], canvas, *each)
                for row, each in enumerate(sizes)
            ]
        with self.on_device(canvas, picture, words) as there:
            return [
                kernel(there.mask_logits, there.class_probabilities, canvas, *each, stream=there.stream, row=row)
                for row, each in enumerate(sizes)
            ]

    def open(self, canvas: Size) -> None:
        """Load the engines of a canvas now, run them once, and compile the label map's kernel."""
        with self._lane(canvas) as lane:
            lane.warm_up()
        self._kernel()

    def close(self) -> None:
        """Wait for the runs that go on, and give everything back. Opened again if need be.

        Raises:
            BackendError: called inside an `on_device` block of the same thread, which it would wait for.
        """
        if threading.get_ident() in self._running:
            raise BackendError("engines closed while their results are in use", cure="close them after the with block")
        with self._closing, ExitStack() as places:  # two that take places in turn would wait for each other
            for _ in range(self._concurrent_runs):
                self._places.acquire()
                places.callback(self._places.release)
            self._release()

    def _release(self) -> None:
        self._backend.device.activate()
        with self._lock, ExitStack() as owned:  # all of it, also when one fails
            if self._label_map is not None:
                owned.callback(self._label_map.close)
            for graph in self._graphs.values():
                owned.callback(self._backend.close, graph)
            for lane in (lane for free in self._free.values() for lane in free):
                owned.callback(lane.close)
            self._free.clear()
            self._graphs.clear()
            self._checked.clear()

    def _kernel(self) -> DeviceLabelMap | None:
        """The label map kernel, compiled at the first call; None where that failed."""
        with self._lock:
            if self._label_map is None and not self._label_map_failed:
                try:
                    self._label_map = DeviceLabelMap(self._backend.device)
                except BackendError as error:
                    self._label_map_failed = True
                    warnings.warn(f"label maps are made on the CPU: {error}", stacklevel=3)
            return self._label_map

    @contextmanager
    def _lane(self, canvas: Size) -> Iterator[EngineLane]:
        """A lane of one's own. It is not used again after an error: what was on its streams is unknown."""
        with self._places:
            self._backend.device.activate()
            with self._lock:
                free = self._free.setdefault(canvas, [])
                lane = free.pop() if free else self._make_lane(canvas)
            thread = threading.get_ident()
            self._running.append(thread)
            try:
                yield lane
            except BaseException:
                with suppress(BackendError):  # after a failed run every call fails; the first error tells
                    lane.close()
                raise
            finally:
                self._running.remove(thread)
            with self._lock:
                free.append(lane)

    def _make_lane(self, canvas: Size) -> EngineLane:
        for name in LANE_GRAPHS:
            size = None if name == OPEN_VOCAB_HEAD else canvas
            if (name, size) not in self._graphs:
                record = self._bundle.graph(name, canvas, self._precision)
                self._graphs[name, size] = self._backend.open(
                    self._backend.graph_file(self._bundle, record), spec=record.spec, name=name
                )
        graphs = {name: self._graphs[name, None if name == OPEN_VOCAB_HEAD else canvas] for name in LANE_GRAPHS}
        lane = EngineLane(
            {name: engine_of(graph) for name, graph in graphs.items()},
            self._backend.device,
            overlap=self._overlap,
            cuda_graphs=self._cuda_graphs,
        )
        if self._sentinel is not None and canvas not in self._checked:
            try:
                self._sentinel.check(canvas, graphs, lambda inputs: self._reference_run(lane, graphs, inputs))
            except BaseException:
                with suppress(BackendError):
                    lane.close()
                raise
            self._checked.add(canvas)
        return lane

    def _reference_run(
        self, lane: EngineLane, graphs: Mapping[GraphName, OpenGraph], inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Every tensor of a run, on the streams and buffers that later runs have."""
        words = {name: inputs[name] for name in WORDS}
        fits = self._backend.takes(graphs[OPEN_VOCAB_HEAD], {name: array.shape for name, array in words.items()})
        least, most = (shape[0] for shape in engine_of(graphs[CLIP_IMAGE_ENCODER]).limits("image"))
        given = len(inputs["image"])
        # Engines of a dynamic batch may want more pictures than the reference has, or take fewer.
        rows = np.arange(min(max(given, least), most)) % given
        picture = {name: np.ascontiguousarray(inputs[name][rows]) for name in PICTURE}
        lane.start(picture, words if fits else lane.fewest_words())
        found = lane.read_everything()
        if not fits:
            least, most = (shape[0] for shape in engine_of(graphs[OPEN_VOCAB_HEAD]).limits("seen"))
            warnings.warn(
                f"{OPEN_VOCAB_HEAD} goes unchecked: built for {least} to {most} classes, the bundle's reference has "
                f"{len(words['seen'])}",
                stacklevel=2,
            )
            del found["class_probabilities"]
        return found
