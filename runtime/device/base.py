"""What the engine runtime asks of CUDA, and nothing more: memory, copies, streams, events, graphs, kernels.

Addresses and handles are plain integers, as TensorRT's Python interface takes them. A `Device` hands out raw
resources; `arrays.py` and the pipeline own them and give them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Device(Protocol):
    """One GPU. Every method raises BackendError with CUDA's own error name when CUDA refuses.

    The copies are asynchronous: they take place on `stream`, after what is on it already. Host addresses given to
    them must be pinned and stay alive until the stream was waited for.
    """

    name: str
    """For people: "cuda-python, device 0"."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(8, 7) for an Orin."""
        ...

    @property
    def identity(self) -> str:
        """This very GPU: "GPU-6ba7b810-9dad-11d1-80b4-00c04fd430c8"."""
        ...

    @property
    def driver(self) -> str:
        """The driver's release and the CUDA version it supports; see `gpu_host.driver_version`."""
        ...

    def activate(self) -> None:
        """Make this GPU the calling thread's; call it first in every thread."""
        ...

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes, aligned to 256: its address."""
        ...

    def free(self, address: int) -> None: ...

    def allocate_pinned(self, size: int) -> int:
        """Page-locked host memory of `size` bytes: its address."""
        ...

    def free_pinned(self, address: int) -> None: ...

    def create_stream(self) -> int:
        """A stream that does not wait for the default stream."""
        ...

    def destroy_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None:
        """Wait on the host until everything on the stream is done; errors of that work surface here."""
        ...

    def create_event(self) -> int: ...

    def destroy_event(self, event: int) -> None: ...

    def record_event(self, event: int, stream: int) -> None:
        """The event happens when what is on the stream now is done."""
        ...

    def wait_event(self, stream: int, event: int) -> None:
        """What comes on the stream from now on starts after the event."""
        ...

    def copy_to_device(self, target: int, source: int, size: int, stream: int) -> None: ...

    def copy_to_host(self, target: int, source: int, size: int, stream: int) -> None: ...

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None: ...

    def begin_capture(self, stream: int) -> None:
        """From now on this thread's work on the stream, and on streams that wait for it, is noted and not done."""
        ...

    def end_capture(self, stream: int) -> int:
        """The noted work as a CUDA graph ready to launch: its handle."""
        ...

    def launch_graph(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...

    def load_kernel(self, image: bytes, name: str) -> int:
        """A kernel of a cubin or of PTX: its handle, which lives as long as the device's context."""
        ...

    def launch_kernel(
        self,
        kernel: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared: int,
        stream: int,
        arguments: Sequence[Any],
    ) -> None:
        """Start a kernel.

        Args:
            shared: bytes of dynamic shared memory.
            arguments: ctypes values and structures, in the kernel's order; an address is a c_void_p.
        """
        ...
