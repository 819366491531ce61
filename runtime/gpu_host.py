"""The GPU that graphs run on, as far as their numbers may depend on it.

Asked of the driver's own library, so that it works with any execution engine and needs no CUDA package.
"""

from __future__ import annotations

import ctypes
import re
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRIVER_FILES = (Path("/proc/driver/nvidia/version"), Path("/sys/module/nvidia/version"))
_RELEASE = re.compile(r"\b\d{3,4}\.\d+(?:\.\d+)?\b")
_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


@dataclass(frozen=True, kw_only=True)
class GpuHost:
    """An execution engine on a GPU: when one of these changes, numbers that were right may be wrong."""

    engine: str
    """"tensorrt", "tensorrt-rtx", "onnxruntime:cuda", …"""
    engine_version: str
    gpu: str
    """"GPU-6ba7b810-9dad-11d1-80b4-00c04fd430c8", as `nvidia-smi -L` has it."""
    compute_capability: str
    """"8.9"."""
    driver: str
    """"550.54.14, CUDA 12.4"; see `driver_version`."""

    def __str__(self) -> str:
        return (
            f"{self.engine} {self.engine_version} on a GPU of compute capability {self.compute_capability}, "
            f"driver {self.driver}"
        )


def gpu_name(identity: bytes) -> str:
    """A GPU's 16 bytes of UUID as nvidia-smi writes them."""
    return f"GPU-{uuid.UUID(bytes=identity)}"


def driver_version(cuda: int) -> str:
    """The driver's release, where the system tells it, and the CUDA version it supports.

    Args:
        cuda: as CUDA counts: 12040 is 12.4.
    """
    supports = f"CUDA {cuda // 1000}.{cuda % 1000 // 10}"
    for file in DRIVER_FILES:
        try:
            release = _RELEASE.search(file.read_text(encoding="ascii", errors="replace"))
        except OSError:  # Windows, WSL; then the CUDA version has to do
            continue
        if release:
            return f"{release[0]}, {supports}"
    return supports


def find_gpu(index: int = 0, *, engine: str, engine_version: str) -> GpuHost | None:
    """The GPU of that index, of those that CUDA_VISIBLE_DEVICES leaves; None where there is no driver or no GPU.

    Args:
        index: as CUDA counts.
        engine: what is to run on it, and its version.
    """
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version, device, identity = ctypes.c_int(), ctypes.c_int(), (ctypes.c_uint8 * 16)()
    capability = [ctypes.c_int(), ctypes.c_int()]
    # _v2 knows the parts of a divided GPU (MIG) apart; drivers before 470 have the first form only.
    identify = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
    calls: list[tuple[Any, ...]] = [
        (cuda.cuInit, 0),
        (cuda.cuDriverGetVersion, ctypes.byref(version)),
        (cuda.cuDeviceGet, ctypes.byref(device), index),
    ]
    for function, *arguments in calls:
        if function(*arguments) != 0:
            return None
    if identify(ctypes.byref(identity), device) != 0:
        return None
    for value, attribute in zip(capability, _CAPABILITY, strict=True):
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return None
    return GpuHost(
        engine=engine,
        engine_version=engine_version,
        gpu=gpu_name(bytes(identity)),
        compute_capability=f"{capability[0].value}.{capability[1].value}",
        driver=driver_version(version.value),
    )
