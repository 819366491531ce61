"""What machine this is: the part of a measurement without which its numbers mean nothing."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.threads import usable_cores

PACKAGES = (
    "ebseg-deploy",
    "numpy",
    "pillow",
    "tokenizers",
    "safetensors",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu12",
    "cuda-python",
    "torch",
    "onnx",
)
"""Distributions whose version may change a latency or a result."""

SMI_TIMEOUT_SECONDS = 10
SMI_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU, as nvidia-smi tells it."""

    name: str
    driver: str
    memory_mib: int | None
    """None where nvidia-smi does not know, as on Jetson, whose GPU shares the machine's memory."""
    compute_capability: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Hardware, system and versions."""

    system: str
    cpu: str
    cores: int
    """Logical processors."""
    usable_cores: int
    """How many of them this process may use: affinity and a container's quota applied."""
    memory_bytes: int
    """Of the machine, or of the container when that has less."""
    available_bytes: int
    """What could be taken now without swapping."""
    gpus: tuple[Gpu, ...]
    cuda_driver: str | None
    """CUDA version the installed driver supports, or None without a driver."""
    python: str
    packages: dict[str, str]
    """Installed distributions among PACKAGES, with their versions."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def describe_machine() -> Machine:
    """Look at this machine; takes milliseconds, or up to 10 s where nvidia-smi hangs."""
    import psutil

    memory = psutil.virtual_memory()
    limit, used = container_memory()
    return Machine(
        system=platform.platform(),
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        memory_bytes=min(memory.total, limit),
        available_bytes=min(memory.available, limit - used),
        gpus=nvidia_gpus(),
        cuda_driver=cuda_driver_version(),
        python=platform.python_version(),
        packages=package_versions(),
    )


def package_versions() -> dict[str, str]:
    """Versions of PACKAGES, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's model name; a board's name where the processor has none (Jetson, Raspberry Pi)."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    board = Path("/proc/device-tree/model")
    if board.is_file():
        return board.read_text(errors="replace").strip("\0 \n")
    if sys.platform == "darwin":
        answer = _output("sysctl", "-n", "machdep.cpu.brand_string")
        if answer:
            return answer
    return platform.processor() or platform.machine()


def container_memory() -> tuple[int, int]:
    """Limit and present use of a container's memory, in bytes; a limit beyond any machine where there is none.

    Cached files count as used there though they give way when memory is asked for, so they are taken off.
    """
    for folder, limit_file, used_file, cached in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _read(f"{folder}/{limit_file}"), _read(f"{folder}/{used_file}")
        if limit.isdigit() and used.isdigit():
            statistics = dict(line.split(" ", 1) for line in _read(f"{folder}/memory.stat").splitlines() if " " in line)
            taken = int(used) - int(statistics.get(cached, 0))
            return int(limit), min(max(0, taken), int(limit))
    return 1 << 62, 0


def nvidia_gpus() -> tuple[Gpu, ...]:
    """The GPUs nvidia-smi lists; none without it."""
    answer = _output("nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits")
    rows = ([field.strip() for field in line.split(",")] for line in answer.splitlines())
    return tuple(
        Gpu(
            name=name,
            driver=driver,
            memory_mib=int(memory) if memory.isdigit() else None,
            compute_capability=capability,
        )
        for name, driver, memory, capability in (row for row in rows if len(row) == len(SMI_FIELDS))
    )


def cuda_driver_version() -> str | None:
    """The CUDA version the driver supports ("12.4"), asked of the driver's own library; None without one."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _output(*command: str) -> str:
    """What a program prints; empty when it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
