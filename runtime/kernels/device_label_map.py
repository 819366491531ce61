"""The label map on the GPU: a kernel after the engines, and 0.4 MB to copy instead of 10."""

from __future__ import annotations

import ctypes
import threading
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...contract import Size
from ...errors import BackendError
from ..device import Device, DeviceArray, device_array, pinned_array
from ..device.arrays import host_address
from ..label_map import Labels, label_dtype
from .compile import LABEL_MAP_SOURCE, compile_kernels

THREADS = 64
"""A block: with 100 queries its sigmoids take 25 KB of shared memory, so that several blocks fit a multiprocessor."""
SHARED_BYTES = 48 << 10
"""Shared memory a block gets without asking for more."""


class LabelMapShape(ctypes.Structure):
    """The kernel's `Shape`: ten 32-bit integers, in this order."""

    _fields_ = [
        ("queries", ctypes.c_int),
        ("mask_height", ctypes.c_int),
        ("mask_width", ctypes.c_int),
        ("classes", ctypes.c_int),
        ("canvas_height", ctypes.c_int),
        ("canvas_width", ctypes.c_int),
        ("valid_height", ctypes.c_int),
        ("valid_width", ctypes.c_int),
        ("output_height", ctypes.c_int),
        ("output_width", ctypes.c_int),
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Buffers:
    """Where the kernel writes, and pinned memory to fetch it."""

    labels: DeviceArray
    broken: DeviceArray
    staged: npt.NDArray[np.uint8]
    fault: npt.NDArray[np.int32]


class DeviceLabelMap:
    """Makes label maps from mask logits and class probabilities that lie on the GPU; one call at a time, others wait.

    Its buffers grow with the largest label map and are kept until `close`.

    Args:
        device: where they lie. The kernel is compiled for it here, which takes about a second.

    Raises:
        BackendError: NVRTC is missing or does not know the GPU.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        device.activate()
        image = compile_kernels(LABEL_MAP_SOURCE, device.compute_capability)
        self._kernels = {
            np.dtype(np.uint8): device.load_kernel(image, "label_map_u8"),
            np.dtype(np.uint16): device.load_kernel(image, "label_map_u16"),
        }
        self._lock = threading.Lock()
        self._owned = ExitStack()
        self._buffers: _Buffers | None = None

    def __call__(
        self,
        mask_logits: DeviceArray,
        class_probabilities: DeviceArray,
        canvas: Size,
        valid_size: tuple[int, int],
        output_size: tuple[int, int],
        *,
        stream: int,
        row: int = 0,
    ) -> Labels:
        """The class of the greatest score at every pixel, on the host; of equals, the first. Waits for the stream.

        Args:
            mask_logits: (B, Q, h, w) float32, before the sigmoid.
            class_probabilities: (B, Q, N) float32, none negative.
            canvas: what the masks cover.
            valid_size: rows and columns of the canvas, from the upper left corner, that hold the picture.
            output_size: rows and columns of the label map.
            stream: after whose work the masks are there.
            row: which of the B pictures.

        Returns:
            (H, W) uint8 for up to 256 classes, else uint16: what `label_map.label_map` gives, up to equal scores.

        Raises:
            BackendError: a tensor does not fit, or holds NaN or infinity.
        """
        kind = np.dtype(label_dtype(class_probabilities.shape[-1]))
        device = self._device
        device.activate()
        with self._lock:
            try:
                buffers = self._reserve(max(output_size[0] * output_size[1] * kind.itemsize, 1))
                labels = DeviceArray(address=buffers.labels.address, shape=output_size, dtype=kind)
                found = buffers.staged[: labels.nbytes].view(kind).reshape(output_size)
                buffers.fault[0] = 0
                device.copy_to_device(buffers.broken.address, host_address(buffers.fault), 4, stream)
                self.enqueue(
                    mask_logits,
                    class_probabilities,
                    labels,
                    buffers.broken,
                    canvas,
                    valid_size,
                    stream=stream,
                    row=row,
                )
                device.copy_to_host(host_address(found), labels.address, labels.nbytes, stream)
                device.copy_to_host(host_address(buffers.fault), buffers.broken.address, 4, stream)
            finally:
                device.synchronize(stream)  # also after an error: the buffers are used again
            if buffers.fault[0]:
                raise BackendError(
                    "mask_logits or class_probabilities hold NaN or infinity",
                    cure="check the engines with `ebseg verify`, or build them as fp32",
                )
            result: Labels = found.copy()
            return result

    def close(self) -> None:
        """Give the buffers back; they are made again if need be."""
        self._device.activate()
        with self._lock:
            self._buffers = None
            self._owned.close()

    def _reserve(self, size: int) -> _Buffers:
        """Buffers for label maps of so many bytes: those of before, or larger ones."""
        if self._buffers is None or self._buffers.labels.nbytes < size:
            self._buffers = None
            self._owned.close()
            with ExitStack() as owned:
                self._buffers = _Buffers(
                    labels=device_array(self._device, (size,), np.uint8, owned),
                    broken=device_array(self._device, (1,), np.int32, owned),
                    staged=pinned_array(self._device, (size,), np.uint8, owned),
                    fault=pinned_array(self._device, (1,), np.int32, owned),
                )
                self._owned = owned.pop_all()
        return self._buffers

    def enqueue(
        self,
        mask_logits: DeviceArray,
        class_probabilities: DeviceArray,
        labels: DeviceArray,
        broken: DeviceArray,
        canvas: Size,
        valid_size: tuple[int, int],
        *,
        stream: int,
        row: int = 0,
    ) -> None:
        """Start the kernel and leave the label map on the GPU; nothing is waited for.

        Args:
            labels: (H, W) uint8, or uint16 for more than 256 classes; written.
            broken: (1,) int32; set to 1 if a score is NaN or infinite, else left as it is.
        """
        _check(mask_logits, class_probabilities, labels, canvas, valid_size, row)
        queries, height, width = mask_logits.shape[1:]
        classes = class_probabilities.shape[2]
        shape = LabelMapShape(queries, height, width, classes, canvas.height, canvas.width, *valid_size, *labels.shape)
        item = mask_logits.dtype.itemsize
        self._device.launch_kernel(
            self._kernels[labels.dtype],
            (-(-labels.shape[1] // THREADS), labels.shape[0], 1),
            (THREADS, 1, 1),
            queries * THREADS * item,
            stream,
            (
                ctypes.c_void_p(mask_logits.address + row * queries * height * width * item),
                ctypes.c_void_p(class_probabilities.address + row * queries * classes * item),
                ctypes.c_void_p(labels.address),
                ctypes.c_void_p(broken.address),
                shape,
            ),
        )


def _check(
    mask_logits: DeviceArray,
    class_probabilities: DeviceArray,
    labels: DeviceArray,
    canvas: Size,
    valid_size: tuple[int, int],
    row: int,
) -> None:
    masks, classes = mask_logits.shape, class_probabilities.shape
    if len(masks) != 4 or len(classes) != 3 or masks[:2] != classes[:2] or not 0 <= row < masks[0]:
        raise BackendError(
            f"label map: row {row} of mask logits {masks} and class probabilities {classes}",
            cure="give (B, Q, h, w), (B, Q, N) and a row below B",
        )
    if {mask_logits.dtype, class_probabilities.dtype} != {np.dtype(np.float32)}:
        raise BackendError(
            f"label map: mask logits are {mask_logits.dtype}, class probabilities {class_probabilities.dtype}",
            cure="give float32",
        )
    if labels.dtype != label_dtype(classes[2]) or len(labels.shape) != 2 or min(labels.shape) < 1:
        raise BackendError(
            f"label map: labels of {classes[2]} classes in {labels.dtype} {labels.shape}",
            cure="give (H, W) uint8 for up to 256 classes, else uint16",
        )
    if not (1 <= valid_size[0] <= canvas.height and 1 <= valid_size[1] <= canvas.width):
        raise BackendError(
            f"label map: valid size {valid_size} on a canvas of {canvas}", cure="give rows and columns inside it"
        )
    if masks[1] * THREADS * mask_logits.dtype.itemsize > SHARED_BYTES or labels.shape[0] > 65535:
        raise BackendError(
            f"label map: {masks[1]} queries, {labels.shape[0]} rows",
            cure=f"at most {SHARED_BYTES // THREADS // 4} queries and 65535 rows; use label_map on the host",
        )
