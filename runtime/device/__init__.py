"""GPU memory, streams, events and graphs behind one small protocol."""

from __future__ import annotations

from .arrays import DeviceArray, as_device_array, device_array, is_device_array, pinned_array
from .base import Device
from .cuda_python import CudaPythonDevice
from .pycuda_device import PyCudaDevice
from .races import DeviceMisuseError
from .recording import RecordingDevice

__all__ = [
    "CudaPythonDevice",
    "Device",
    "DeviceArray",
    "DeviceMisuseError",
    "PyCudaDevice",
    "RecordingDevice",
    "as_device_array",
    "device_array",
    "is_device_array",
    "pinned_array",
]
