"""Memory with an owner: arrays on the GPU, and pinned arrays on the host that copies can reach while the CPU works."""

from __future__ import annotations

import ctypes
import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BackendError
from .base import Device


@dataclass(frozen=True, kw_only=True)
class DeviceArray:
    """A C-contiguous array in GPU memory. CuPy, PyTorch, Numba and pycuda take it as it is, without a copy."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None = None
    """Whoever reads the array orders his work after this stream's; None when nothing is left to wait for."""
    owner: object = None
    """Kept alive as long as the array is."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the protocol."""
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream,
        }


def is_device_array(array: object) -> bool:
    """Whether `array` lies in GPU memory and says so."""
    return hasattr(array, "__cuda_array_interface__")


def as_device_array(array: Any) -> DeviceArray:
    """See another library's GPU array without copying it.

    Args:
        array: has `__cuda_array_interface__`: a CuPy array, a torch CUDA tensor, a pycuda GPUArray…

    Raises:
        BackendError: the array is masked or not C-contiguous.
    """
    given = array.__cuda_array_interface__
    dtype, shape = np.dtype(given["typestr"]), tuple(int(length) for length in given["shape"])
    strides = given.get("strides")
    contiguous = tuple(dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if strides is not None and any(
        found != wanted and length > 1 for found, wanted, length in zip(strides, contiguous, shape, strict=True)
    ):
        raise BackendError(
            f"device array of shape {shape}: strides {tuple(strides)} are not C-contiguous",
            cure="make it contiguous: cupy.ascontiguousarray(x), or x.contiguous() in torch",
        )
    if given.get("mask") is not None:
        raise BackendError(f"device array of shape {shape} is masked", cure="give an array without a mask")
    stream = given.get("stream")
    return DeviceArray(
        address=int(given["data"][0]),
        shape=shape,
        dtype=dtype,
        stream=None if stream is None else int(stream),
        owner=array,
    )


def device_array(device: Device, shape: tuple[int, ...], dtype: npt.DTypeLike, owned: ExitStack) -> DeviceArray:
    """Allocate an array on the GPU that `owned` frees."""
    kind = np.dtype(dtype)
    # At least one byte: engines refuse a null address even for an empty tensor.
    address = device.allocate(max(math.prod(shape) * kind.itemsize, 1))
    owned.callback(device.free, address)
    return DeviceArray(address=address, shape=tuple(shape), dtype=kind)


def pinned_array(device: Device, shape: tuple[int, ...], dtype: npt.DTypeLike, owned: ExitStack) -> npt.NDArray[Any]:
    """Allocate a zeroed array in page-locked host memory that `owned` frees; nothing may use it after that."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    address = device.allocate_pinned(max(size, 1))
    owned.callback(device.free_pinned, address)
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    memory[...] = 0
    array: npt.NDArray[Any] = memory.view(kind).reshape(shape)
    return array


def host_address(array: npt.NDArray[Any]) -> int:
    """Where a host array starts."""
    return int(array.ctypes.data)
