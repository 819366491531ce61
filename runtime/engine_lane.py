"""One run of a canvas's engines at a time: contexts, buffers, two streams, and a CUDA graph of it all.

    main   picture ─┬─ sam_image_encoder ──┬─ adab_decoder ─ open_vocab_head ─ results
    side            └─ clip_image_encoder ─┘

What one engine gives the next reads where it was written: nothing goes through the host in between. From the second
run with the same number of classes on, the four engines are launched as one CUDA graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import ADAB_DECODER, CLIP_IMAGE_ENCODER, OPEN_VOCAB_HEAD, SAM_IMAGE_ENCODER, GraphName, TensorSpec
from ..errors import BackendError
from .backends import check_tensors
from .backends.tensorrt_engine import Engine, EngineContext, numpy_dtype
from .device import Device, DeviceArray, as_device_array, device_array, is_device_array, pinned_array
from .device.arrays import host_address

Array = npt.NDArray[Any]

LANE_GRAPHS: tuple[GraphName, ...] = (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER, ADAB_DECODER, OPEN_VOCAB_HEAD)
PICTURE = ("image", "valid_size")
WORDS = ("text_embeddings", "seen")
RESULTS = ("mask_logits", "class_probabilities")


class EngineLane:
    """Everything that one run needs; for one thread at a time.

    Args:
        engines: the four of LANE_GRAPHS, for one canvas.
        device: where they were loaded.
        overlap: the image encoders side by side.
        cuda_graphs: capture and replay, where the engines allow it.

    Raises:
        BackendError: two engines do not fit together, or memory is short.
    """

    def __init__(
        self, engines: Mapping[GraphName, Engine], device: Device, *, overlap: bool = True, cuda_graphs: bool = True
    ) -> None:
        self._device = device
        self._graphs_allowed = cuda_graphs
        self._graph: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        """Of the head's tensors, for the number of classes that is set."""
        self._runs = 0
        """With that number of classes."""
        self._staging: dict[str, Array] = {}
        self._words: dict[str, Array] = {}
        """What of the vocabulary lies on the GPU: views of the staging arrays."""
        with ExitStack() as owned:  # gives back what was made if the rest cannot be made
            self.stream = device.create_stream()
            owned.callback(device.destroy_stream, self.stream)
            self._side = self.stream
            if overlap:
                self._side = device.create_stream()
                owned.callback(device.destroy_stream, self._side)
            self._arrived = device.create_event()
            owned.callback(device.destroy_event, self._arrived)
            self._clip_done = device.create_event()
            owned.callback(device.destroy_event, self._clip_done)
            self._contexts = {name: engines[name].create_context() for name in LANE_GRAPHS}
            self._arrays, self._specs = _connect(self._contexts, device, owned)
            for name in (*PICTURE, *WORDS, *RESULTS):
                array = self._arrays[name]
                self._staging[name] = pinned_array(device, array.shape, array.dtype, owned)
            for name in LANE_GRAPHS[:-1]:  # of fixed shapes: set once
                inputs = self._contexts[name].engine.spec.inputs
                self._contexts[name].set_shapes({each.name: self._arrays[each.name].shape for each in inputs})
            self._batch = self._arrays["image"].shape[0]
            """Pictures that the contexts are set to."""
            self._owned = owned.pop_all()

    def start(self, picture: Mapping[str, Any], words: Mapping[str, Array]) -> None:
        """Put a whole run on the lane's stream, without waiting for it.

        Args:
            picture: `image` uint8 (B, 3, H, W) and `valid_size` int32 (B, 2), each on the host or on the GPU. B is the
                engines' batch, or of a dynamic one any within their profile.
            words: `text_embeddings` (N+1, D) and `seen` (N,), on the host; copied to the GPU when they change.
        """
        if picture.keys() != set(PICTURE):
            raise BackendError(f"picture of {', '.join(picture) or 'nothing'}", cure=f"give {' and '.join(PICTURE)}")
        self._set_batch(picture["image"].shape)
        for name, array in picture.items():
            self._put(name, array)
        self._put_words(self._checked_words(words))
        if self._graph is not None:
            self._device.launch_graph(self._graph, self.stream)
        elif self._runs == 0 or not self._graphs_allowed:
            # The first run with a shape is TensorRT's own warm-up, which no capture may contain.
            self._enqueue()
        else:
            self._capture()
        self._runs += 1

    def warm_up(self) -> None:
        """Run once on an empty picture and as few classes as the profile allows, if nothing ran yet, and wait.

        TensorRT allocates in an engine's first run, and TensorRT for RTX compiles kernels in it, which takes seconds.
        """
        if self._words:
            return
        picture = {name: np.zeros_like(self._staging[name]) for name in PICTURE}
        self.start(picture, self.fewest_words())
        self.wait()

    def fewest_words(self) -> dict[str, Array]:
        """Zeros for as few classes as the profile allows."""
        limits = self._contexts[OPEN_VOCAB_HEAD].engine.limits
        return {name: np.zeros(limits(name)[0], self._staging[name].dtype) for name in WORDS}

    def result(self, name: str) -> DeviceArray:
        """A result where it lies on the GPU; read it after the lane's stream, and before the lane's next run."""
        array = self._arrays[name]
        return DeviceArray(
            address=array.address,
            shape=self._shapes.get(name, self._shape(name)),
            dtype=array.dtype,
            stream=self.stream,
            owner=self,
        )

    def fetch(self, *names: str) -> dict[str, Array]:
        """Wait for the run, and copy results to the host."""
        staged = {}
        for name in names:
            array = self.result(name)
            target = self._staging[name].reshape(-1)[: int(np.prod(array.shape))]
            self._device.copy_to_host(host_address(target), array.address, target.nbytes, self.stream)
            staged[name] = target.reshape(array.shape)
        self._device.synchronize(self.stream)
        return {name: array.copy() for name, array in staged.items()}  # the next run writes over the staging

    def read_everything(self) -> dict[str, Array]:
        """Wait for the run, and copy every output of every engine to the host, what passes between them included."""
        found = {}
        for name in LANE_GRAPHS:
            for tensor in self._contexts[name].engine.spec.outputs:
                array = self.result(tensor.name)
                with ExitStack() as owned:
                    staged = pinned_array(self._device, array.shape, array.dtype, owned)
                    self._device.copy_to_host(host_address(staged), array.address, staged.nbytes, self.stream)
                    self._device.synchronize(self.stream)
                    found[tensor.name] = staged.copy()
        return found

    def wait(self) -> None:
        """Until the run is done."""
        self._device.synchronize(self.stream)

    def close(self) -> None:
        """Wait for what is still running, then give everything back."""
        for release in (self._contexts.clear, self._drop_graph):  # first: a graph and contexts refer to the buffers
            self._owned.callback(release)
        for stream in dict.fromkeys((self.stream, self._side)):
            self._owned.callback(self._device.synchronize, stream)
        self._owned.close()

    def _enqueue(self) -> None:
        """Four engines on two streams."""
        device = self._device
        if self._side != self.stream:
            device.record_event(self._arrived, self.stream)
            device.wait_event(self._side, self._arrived)
        self._contexts[CLIP_IMAGE_ENCODER].enqueue(self._side)
        self._contexts[SAM_IMAGE_ENCODER].enqueue(self.stream)
        if self._side != self.stream:
            device.record_event(self._clip_done, self._side)
            device.wait_event(self.stream, self._clip_done)
        self._contexts[ADAB_DECODER].enqueue(self.stream)
        self._contexts[OPEN_VOCAB_HEAD].enqueue(self.stream)

    def _capture(self) -> None:
        """Note a run as a CUDA graph and launch it; where an engine cannot be captured, say so once and run it."""
        reason = "an engine is not capturable"
        if all(context.capturable(self.stream) for context in self._contexts.values()):
            try:
                self._device.begin_capture(self.stream)
                self._enqueue()
            except BackendError as error:
                reason = str(error)
                with suppress(BackendError):  # a broken capture ends with an error, but ends
                    self._device.destroy_graph(self._device.end_capture(self.stream))
            else:
                self._graph = self._device.end_capture(self.stream)
                self._device.launch_graph(self._graph, self.stream)
                return
        self._graphs_allowed = False
        warnings.warn(f"running without CUDA graphs, some tenths of a millisecond slower: {reason}", stacklevel=2)
        self._enqueue()

    def _drop_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            self._device.destroy_graph(graph)

    def _shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, with the number of pictures that is set."""
        shape = self._arrays[name].shape
        return (self._batch, *shape[1:]) if self._specs[name].shape[0] == "batch" else shape

    def _set_batch(self, image_shape: tuple[int, ...]) -> None:
        """Set the contexts to another number of pictures, where the batch is dynamic."""
        if self._specs["image"].shape[0] != "batch" or len(image_shape) != 4 or image_shape[0] == self._batch:
            return
        self._batch = image_shape[0]
        self._drop_graph()
        self._runs, self._shapes, self._words = 0, {}, {}  # the head's shapes follow with the words
        for name in LANE_GRAPHS[:-1]:
            inputs = self._contexts[name].engine.spec.inputs
            self._contexts[name].set_shapes({each.name: self._shape(each.name) for each in inputs})

    def _put(self, name: str, given: Any) -> None:
        """Copy an input to where its engines read it; from pinned memory, or on the GPU."""
        own, spec, shape = self._arrays[name], self._specs[name], self._shape(name)
        array = as_device_array(given) if is_device_array(given) else given
        if array.dtype != own.dtype or tuple(array.shape) != shape:
            raise BackendError(
                f"{name} is {array.dtype} {tuple(array.shape)}", cure=f"give {spec.dtype} {shape}, C-contiguous"
            )
        if isinstance(array, DeviceArray):
            self._after(array.stream)
            self._device.copy_on_device(own.address, array.address, array.nbytes, self.stream)
            return
        staged = self._staging[name][: len(array)]
        staged[...] = array
        self._device.copy_to_device(own.address, host_address(staged), staged.nbytes, self.stream)

    def _after(self, stream: int | None) -> None:
        """Order the lane's work after another's stream."""
        if stream is not None:
            self._device.record_event(self._arrived, stream)
            self._device.wait_event(self.stream, self._arrived)

    def _checked_words(self, words: Mapping[str, Array]) -> dict[str, Array]:
        """The vocabulary's arrays in the types the engine takes."""
        specs = [self._specs[name] for name in WORDS]
        types = {each.name: numpy_dtype(each) for each in specs}
        cast = {name: array.astype(types.get(name, array.dtype), copy=False) for name, array in words.items()}
        check_tensors(OPEN_VOCAB_HEAD, specs, cast)
        rows, classes = len(cast["text_embeddings"]), len(cast["seen"])
        if rows != classes + 1:
            raise BackendError(
                f"text_embeddings has {rows} rows and seen {classes}",
                cure="give a row for each class, then the background",
            )
        return cast

    def _put_words(self, words: Mapping[str, Array]) -> None:
        if self._words.keys() == words.keys() and all(
            np.array_equal(self._words[name], array) for name, array in words.items()
        ):
            return
        self._words = {}  # until all of them are there
        head = self._contexts[OPEN_VOCAB_HEAD]
        shapes = {each.name: self._shape(each.name) for each in head.engine.spec.inputs}
        shapes |= {name: array.shape for name, array in words.items()}
        if shapes != {name: shape for name, shape in self._shapes.items() if name in shapes}:
            self._drop_graph()
            self._runs = 0
            self._shapes = {}
            self._shapes = {**shapes, **head.set_shapes(shapes)}
        staged = {}
        for name, array in words.items():
            flat = self._staging[name].reshape(-1)[: array.size]
            flat[...] = array.reshape(-1)
            self._device.copy_to_device(self._arrays[name].address, host_address(flat), flat.nbytes, self.stream)
            staged[name] = flat.reshape(array.shape)
        self._words = staged


def _connect(
    contexts: Mapping[GraphName, EngineContext], device: Device, owned: ExitStack
) -> tuple[dict[str, DeviceArray], dict[str, TensorSpec]]:
    """One buffer per tensor name, as large as its profile allows, bound to every engine that has the tensor."""
    arrays: dict[str, DeviceArray] = {}
    specs: dict[str, TensorSpec] = {}
    for context in contexts.values():
        shapes = context.largest_shapes()
        for tensor in (*context.engine.spec.inputs, *context.engine.spec.outputs):
            name, shape = tensor.name, shapes[tensor.name]
            if name not in arrays:
                arrays[name], specs[name] = device_array(device, shape, numpy_dtype(tensor), owned), tensor
            elif (arrays[name].shape, specs[name].dtype) != (shape, tensor.dtype):
                raise BackendError(
                    f"engine {context.engine.name}: {name} is {tensor.dtype} {shape}, "
                    f"the engine before it has {specs[name].dtype} {arrays[name].shape}",
                    cure="build all engines of a precision from the same bundle, with the same options",
                )
            context.bind(name, arrays[name].address)
    return arrays, specs
