"""A GPU that is not there: it does what a stream-ordered device may do at worst, and says what was done wrong.

For tests, ours and those of hosts that write stream code of their own. Work on a stream is put off until something
waits for it, so that a host that reads too early reads poison, and one that overwrites a staging buffer too early
spoils the copy. Between streams, every access is held against the accesses before it with vector clocks: two that
touch the same bytes, one of them writing, must be ordered by a stream, an event or a wait of the host.

    device = RecordingDevice()
    ...                      # run the code under test with it
    device.check_released()  # everything that was allocated or created was given back
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .races import Accesses, Clock, DeviceMisuseError, Span, join, overlap

POISON = 0xCB
"""Fills fresh memory: as float32 it is -26711958, as a label 203."""
_ALIGNMENT = 256


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One entry of the record."""

    kind: str
    """"copy_to_device", "copy_to_host", "copy_on_device", "kernel", "graph"."""
    name: str
    stream: int
    size: int
    """Bytes copied; 0 for the others."""
    captured: bool
    """Noted in a graph, not done."""


@dataclass(kw_only=True)
class _Work:
    """What is put off."""

    kind: str
    name: str
    size: int
    reads: tuple[Span, ...]
    writes: tuple[Span, ...]
    act: Callable[[], None]
    after: tuple[int, int] | None = None
    """(stream, how many of its works must be done first), where the work is to wait for an event."""


@dataclass(kw_only=True)
class _Stream:
    clock: Clock = field(default_factory=dict)
    pending: deque[_Work] = field(default_factory=deque)
    done: int = 0
    capture: int | None = None
    """Origin of the capture it takes part in."""


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """What an event stands for."""

    clock: Clock
    mark: tuple[int, int]
    """(stream, how many of its works the event comes after)."""
    capture: int | None


class RecordingDevice:
    """A `Device` without a GPU.

    Args:
        compute_capability: what it says of itself.

    Attributes:
        operations: what was put on streams, in order.
        identity, driver: what it says of itself.
    """

    name = "recording"
    identity = "GPU-00000000-0000-0000-0000-000000000000"
    driver = "no driver"

    def __init__(self, compute_capability: tuple[int, int] = (8, 9)) -> None:
        self._capability = compute_capability
        self.operations: list[Operation] = []
        self._memory: dict[int, npt.NDArray[np.uint8]] = {}
        self._pinned: dict[int, Any] = {}
        self._streams: dict[int, _Stream] = {}
        self._events: dict[int, _Recorded | None] = {}
        self._graphs: dict[int, list[_Work]] = {}
        self._notes: dict[int, tuple[list[_Work], Accesses]] = {}
        self._capturing: dict[int, int] = {}  # origin -> thread: others may allocate and wait meanwhile
        self._accesses = Accesses()
        self._host: Clock = {}
        self._next = 0x10_0000_0000
        self._kernels: dict[int, Callable[..., None]] = {}
        self._lock = threading.RLock()

    @property
    def compute_capability(self) -> tuple[int, int]:
        return self._capability

    def activate(self) -> None:
        return None

    # Memory

    def allocate(self, size: int) -> int:
        with self._lock:
            self._refuse_while_capturing("allocate")
            address = self._handle(size)
            self._memory[address] = np.full(size, POISON, dtype=np.uint8)
            return address

    def free(self, address: int) -> None:
        with self._lock:
            self._refuse_while_capturing("free")
            if address not in self._memory:
                raise DeviceMisuseError(f"free of {address:#x}, which is not allocated")
            self._release((address, len(self._memory[address])))
            del self._memory[address]

    def allocate_pinned(self, size: int) -> int:
        with self._lock:
            self._refuse_while_capturing("allocate_pinned")
            block = (ctypes.c_uint8 * size)()
            address = ctypes.addressof(block)
            self._pinned[address] = block
            return address

    def free_pinned(self, address: int) -> None:
        with self._lock:
            if address not in self._pinned:
                raise DeviceMisuseError(f"free_pinned of {address:#x}, which is not allocated")
            self._release((address, len(self._pinned[address])))
            del self._pinned[address]

    def read(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """The bytes at a device address, as a kernel sees them."""
        start, block = self._block((address, size), "read")
        found: npt.NDArray[np.uint8] = block[address - start : address - start + size]
        return found

    # Streams and events

    def create_stream(self) -> int:
        with self._lock:
            stream = self._handle(1)
            self._streams[stream] = _Stream()
            return stream

    def destroy_stream(self, stream: int) -> None:
        with self._lock:
            if self._stream(stream).pending:
                raise DeviceMisuseError(f"stream {stream:#x} destroyed with work on it")
            del self._streams[stream]

    def synchronize(self, stream: int) -> None:
        with self._lock:
            self._refuse_while_capturing("synchronize")
            state = self._stream(stream)
            self._advance(stream, state.done + len(state.pending))
            join(self._host, state.clock)

    def create_event(self) -> int:
        with self._lock:
            event = self._handle(1)
            self._events[event] = None
            return event

    def destroy_event(self, event: int) -> None:
        with self._lock:
            if event not in self._events:
                raise DeviceMisuseError(f"event {event:#x} does not exist")
            del self._events[event]

    def record_event(self, event: int, stream: int) -> None:
        with self._lock:
            state = self._stream(stream)
            if event not in self._events:
                raise DeviceMisuseError(f"event {event:#x} does not exist")
            join(state.clock, self._host)
            mark = (stream, state.done + len(state.pending))
            self._events[event] = _Recorded(clock=dict(state.clock), mark=mark, capture=state.capture)

    def wait_event(self, stream: int, event: int) -> None:
        with self._lock:
            state, recorded = self._stream(stream), self._events.get(event)
            if event not in self._events:
                raise DeviceMisuseError(f"event {event:#x} does not exist")
            if recorded is None:
                raise DeviceMisuseError("a stream waits for an event that was never recorded: no order comes of it")
            if state.capture is not None and recorded.capture != state.capture:
                raise DeviceMisuseError("a captured stream waits for an event from outside its capture")
            if recorded.capture is not None and recorded.capture not in self._notes:
                raise DeviceMisuseError("a stream waits for an event that was recorded in a capture that has ended")
            state.capture = recorded.capture
            join(state.clock, recorded.clock)
            if recorded.capture is None:
                wait = _Work(kind="wait", name="wait", size=0, reads=(), writes=(), act=lambda: None)
                wait.after = recorded.mark
                state.pending.append(wait)

    # Work

    def copy_to_device(self, target: int, source: int, size: int, stream: int) -> None:
        self._copy("copy_to_device", target, source, size, stream)

    def copy_to_host(self, target: int, source: int, size: int, stream: int) -> None:
        self._copy("copy_to_host", target, source, size, stream)

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        self._copy("copy_on_device", target, source, size, stream)

    def enqueue(
        self, name: str, stream: int, *, reads: Sequence[Span], writes: Sequence[Span], act: Callable[[], None]
    ) -> None:
        """Put a kernel on a stream: what it reads, what it writes, and what it does when its turn comes."""
        self._put(stream, _Work(kind="kernel", name=name, size=0, reads=tuple(reads), writes=tuple(writes), act=act))

    def load_kernel(self, image: bytes, name: str) -> int:
        with self._lock:
            handle = self._handle(1)
            self._kernels[handle] = lambda *arguments: None
            return handle

    def define_kernel(self, kernel: int, start: Callable[..., None]) -> None:
        """What `launch_kernel` shall do: called as start(stream, grid, block, shared, arguments)."""
        self._kernels[kernel] = start

    def launch_kernel(
        self,
        kernel: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared: int,
        stream: int,
        arguments: Sequence[Any],
    ) -> None:
        self._kernels[kernel](stream, grid, block, shared, arguments)

    # Graphs

    def begin_capture(self, stream: int) -> None:
        with self._lock:
            state = self._stream(stream)
            if state.capture is not None:
                raise DeviceMisuseError(f"stream {stream:#x} is captured already")
            state.capture = stream
            self._notes[stream] = ([], Accesses())
            self._capturing[stream] = threading.get_ident()

    def end_capture(self, stream: int) -> int:
        with self._lock:
            if self._stream(stream).capture != stream:
                raise DeviceMisuseError("a capture ends on another stream than it began on")
            del self._capturing[stream]
            origin = self._streams[stream]
            works, _ = self._notes.pop(stream)
            members = [key for key, state in self._streams.items() if state.capture == stream]
            for key in members:
                self._streams[key].capture = None
            for key in members:
                state = self._streams[key]
                if origin.clock.get(key, 0) < state.clock.get(key, 0):
                    raise DeviceMisuseError(
                        "a capture ends while another stream in it has work that it did not wait for"
                    )
            graph = self._handle(1)
            self._graphs[graph] = works
            return graph

    def launch_graph(self, graph: int, stream: int) -> None:
        if graph not in self._graphs:
            raise DeviceMisuseError(f"graph {graph:#x} does not exist")
        works = self._graphs[graph]

        def act() -> None:
            for work in works:
                work.act()

        reads = tuple(span for work in works for span in work.reads)
        writes = tuple(span for work in works for span in work.writes)
        self._put(stream, _Work(kind="graph", name="graph", size=0, reads=reads, writes=writes, act=act))

    def destroy_graph(self, graph: int) -> None:
        if graph not in self._graphs:
            raise DeviceMisuseError(f"graph {graph:#x} does not exist")
        del self._graphs[graph]

    def check_released(self) -> None:
        """Raise DeviceMisuseError for what was allocated or created and not given back."""
        left = {
            "device blocks": self._memory,
            "pinned blocks": self._pinned,
            "streams": self._streams,
            "events": self._events,
            "graphs": self._graphs,
        }
        found = [f"{len(each)} {what}" for what, each in left.items() if each]
        if found:
            raise DeviceMisuseError(f"leaked: {', '.join(found)}")

    def _copy(self, kind: str, target: int, source: int, size: int, stream: int) -> None:
        def act() -> None:
            ctypes.memmove(self._host_address(target), self._host_address(source), size)

        from_host, to_host = kind == "copy_to_device", kind == "copy_to_host"
        for address, on_host in ((source, from_host), (target, to_host)):
            found = self._block((address, size), kind)[0] in self._pinned
            if found != on_host:
                raise DeviceMisuseError(f"{kind}: {address:#x} is {'pinned host' if found else 'device'} memory")
        work = _Work(kind=kind, name=kind, size=size, reads=((source, size),), writes=((target, size),), act=act)
        self._put(stream, work)

    def _put(self, stream: int, work: _Work) -> None:
        with self._lock:
            state = self._stream(stream)
            for span in (*work.reads, *work.writes):
                self._block(span, work.name)
            noted = None if state.capture is None else self._notes[state.capture]
            accesses = self._accesses if noted is None else noted[1]
            join(state.clock, self._host)
            state.clock[stream] = state.clock.get(stream, 0) + 1
            spans = [(span, False) for span in work.reads] + [(span, True) for span in work.writes]
            for span, writes in spans:
                accesses.check(span, writes, state.clock, work.name)
            for span, writes in spans:
                accesses.add(span, writes, stream, state.clock, work.name)
            record = Operation(
                kind=work.kind, name=work.name, stream=stream, size=work.size, captured=noted is not None
            )
            self.operations.append(record)
            if noted is None:
                state.pending.append(work)
            else:
                noted[0].append(work)

    def _advance(self, stream: int, until: int) -> None:
        """Do a stream's work up to its n-th, and before each what it waits for."""
        state = self._streams.get(stream)  # a destroyed stream had no work left
        while state is not None and state.done < until:
            work = state.pending.popleft()
            state.done += 1
            if work.after is not None:
                self._advance(*work.after)
            work.act()

    def _stream(self, stream: int) -> _Stream:
        if stream not in self._streams:
            raise DeviceMisuseError(f"stream {stream:#x} does not exist")
        return self._streams[stream]

    def _block(self, span: Span, what: str) -> tuple[int, Any]:
        address, size = span
        for blocks in (self._memory, self._pinned):
            for start, block in blocks.items():
                if start <= address and address + size <= start + len(block):
                    return start, block
        raise DeviceMisuseError(f"{what}: {size} bytes at {address:#x} are not allocated, or freed already")

    def _host_address(self, address: int) -> int:
        start, block = self._block((address, 1), "copy")
        return address if start in self._pinned else int(block.ctypes.data) + address - start

    def _refuse_while_capturing(self, what: str) -> None:
        if threading.get_ident() in self._capturing.values():
            raise DeviceMisuseError(f"{what} while a stream is captured")

    def _release(self, span: Span) -> None:
        for state in self._streams.values():
            for work in state.pending:
                if any(overlap(span, each) for each in (*work.reads, *work.writes)):
                    raise DeviceMisuseError(f"memory is freed while {work.name} on a stream still needs it")
        for works in self._graphs.values():
            if any(overlap(span, each) for work in works for each in (*work.reads, *work.writes)):
                raise DeviceMisuseError("memory is freed that a graph still refers to")
        self._accesses.forget(span)  # the host's addresses come again

    def _handle(self, size: int) -> int:
        handle = self._next
        self._next += (-(-size // _ALIGNMENT) + 1) * _ALIGNMENT  # a gap after each, so that overruns are seen
        return handle
