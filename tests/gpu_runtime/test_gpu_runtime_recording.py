"""The recording device: it does what streams promise, and sees what goes wrong."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
from ebseg_deploy.errors import BackendError
from ebseg_deploy.runtime.device import (
    DeviceArray,
    DeviceMisuseError,
    RecordingDevice,
    as_device_array,
    device_array,
    is_device_array,
    pinned_array,
)
from ebseg_deploy.runtime.device.arrays import host_address
from ebseg_deploy.runtime.device.recording import POISON


class Bench:
    """Two streams, an event, a buffer of 16 floats on the GPU and two on the host."""

    def __init__(self) -> None:
        self.device = RecordingDevice()
        self.owned = ExitStack()
        self.a, self.b = self.device.create_stream(), self.device.create_stream()
        self.event = self.device.create_event()
        self.owned.callback(self.device.destroy_event, self.event)
        for stream in (self.a, self.b):
            self.owned.callback(self.device.destroy_stream, stream)
        self.there = device_array(self.device, (16,), np.float32, self.owned)
        self.source, self.target = (pinned_array(self.device, (16,), np.float32, self.owned) for _ in range(2))
        self.source[...] = np.arange(16)

    def up(self, stream: int) -> None:
        self.device.copy_to_device(self.there.address, host_address(self.source), 64, stream)

    def down(self, stream: int) -> None:
        self.device.copy_to_host(host_address(self.target), self.there.address, 64, stream)

    def double(self, stream: int) -> None:
        def act() -> None:
            values = self.device.read(self.there.address, 64).view(np.float32)
            values[...] = values * 2

        span = (self.there.address, 64)
        self.device.enqueue("double", stream, reads=[span], writes=[span], act=act)

    def order(self, first: int, second: int) -> None:
        self.device.record_event(self.event, first)
        self.device.wait_event(second, self.event)


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestOrder:
    def test_work_on_one_stream(self, bench: Bench) -> None:
        bench.up(bench.a)
        bench.double(bench.a)
        bench.down(bench.a)
        assert not bench.target.any()  # nothing is done before somebody waits
        bench.device.synchronize(bench.a)
        np.testing.assert_array_equal(bench.target, 2 * np.arange(16))
        assert [each.kind for each in bench.device.operations] == ["copy_to_device", "kernel", "copy_to_host"]

    def test_an_event_orders_two_streams(self, bench: Bench) -> None:
        bench.up(bench.a)
        bench.order(bench.a, bench.b)
        bench.double(bench.b)
        bench.order(bench.b, bench.a)
        bench.down(bench.a)
        bench.device.synchronize(bench.a)
        np.testing.assert_array_equal(bench.target, 2 * np.arange(16))

    def test_a_wait_without_work_after_it_holds_for_the_host(self, bench: Bench) -> None:
        bench.up(bench.a)
        bench.down(bench.a)
        bench.order(bench.a, bench.b)
        bench.device.synchronize(bench.b)
        np.testing.assert_array_equal(bench.target, np.arange(16))

    @pytest.mark.parametrize("first", ["up", "double", "down"])
    def test_two_streams_without_an_event(self, bench: Bench, first: str) -> None:
        getattr(bench, first)(bench.a)
        with pytest.raises(DeviceMisuseError, match=r"double and .* touch the same memory"):
            bench.double(bench.b)

    def test_two_readers_need_no_order(self, bench: Bench) -> None:
        bench.up(bench.a)
        bench.order(bench.a, bench.b)
        other = pinned_array(bench.device, (16,), np.float32, bench.owned)
        bench.down(bench.a)
        bench.device.copy_to_host(host_address(other), bench.there.address, 64, bench.b)
        with pytest.raises(DeviceMisuseError):  # but a writer must come after both
            bench.up(bench.a)

    def test_the_event_stands_for_what_was_there_when_it_was_recorded(self, bench: Bench) -> None:
        bench.device.record_event(bench.event, bench.a)
        bench.up(bench.a)
        bench.device.wait_event(bench.b, bench.event)
        with pytest.raises(DeviceMisuseError):
            bench.double(bench.b)

    def test_waiting_on_the_host_orders_too(self, bench: Bench) -> None:
        bench.up(bench.a)
        bench.device.synchronize(bench.a)
        bench.double(bench.b)
        bench.device.synchronize(bench.b)
        bench.down(bench.a)

    def test_an_event_that_was_never_recorded(self, bench: Bench) -> None:
        with pytest.raises(DeviceMisuseError, match="never recorded"):
            bench.device.wait_event(bench.a, bench.event)

    def test_staging_written_over_too_early_spoils_the_copy(self, bench: Bench) -> None:
        bench.up(bench.a)
        bench.source[...] = -1
        bench.down(bench.a)
        bench.device.synchronize(bench.a)
        assert (bench.target == -1).all()


class TestMemory:
    def test_fresh_memory_is_poison(self, bench: Bench) -> None:
        assert (bench.device.read(bench.there.address, 64) == POISON).all()

    def test_leaks_are_named(self, bench: Bench) -> None:
        with pytest.raises(DeviceMisuseError, match="leaked: 1 device blocks, 2 pinned blocks, 2 streams, 1 events"):
            bench.device.check_released()
        bench.owned.close()
        bench.device.check_released()

    def test_use_after_free(self, bench: Bench) -> None:
        address = bench.there.address
        bench.owned.close()
        bench.device.create_stream()
        with pytest.raises(DeviceMisuseError, match="freed already"):
            bench.device.read(address, 4)

    def test_freed_while_needed(self, bench: Bench) -> None:
        bench.up(bench.a)
        with pytest.raises(DeviceMisuseError, match="freed while copy_to_device"):
            bench.device.free(bench.there.address)
        with pytest.raises(DeviceMisuseError, match="freed while copy_to_device"):
            bench.device.free_pinned(host_address(bench.source))
        with pytest.raises(DeviceMisuseError, match="destroyed with work on it"):
            bench.device.destroy_stream(bench.a)

    def test_freed_twice(self, bench: Bench) -> None:
        with ExitStack() as owned:
            address = device_array(bench.device, (4,), np.uint8, owned).address
        with pytest.raises(DeviceMisuseError, match="not allocated"):
            bench.device.free(address)

    def test_a_copy_past_the_end(self, bench: Bench) -> None:
        with pytest.raises(DeviceMisuseError, match="65 bytes"):
            bench.device.copy_to_host(host_address(bench.target), bench.there.address, 65, bench.a)

    def test_a_copy_in_the_wrong_direction_or_from_pageable_memory(self, bench: Bench) -> None:
        with pytest.raises(DeviceMisuseError, match="is device memory"):
            bench.device.copy_to_device(bench.there.address, bench.there.address, 64, bench.a)
        with pytest.raises(DeviceMisuseError, match="not allocated"):
            bench.device.copy_to_device(bench.there.address, host_address(np.zeros(16, np.float32)), 64, bench.a)


class TestGraphs:
    def test_captured_work_is_done_at_every_launch(self, bench: Bench) -> None:
        bench.up(bench.a)
        bench.device.synchronize(bench.a)
        bench.device.begin_capture(bench.a)
        bench.order(bench.a, bench.b)
        bench.double(bench.b)
        bench.order(bench.b, bench.a)
        bench.down(bench.a)
        graph = bench.device.end_capture(bench.a)
        for factor in (2, 4, 8):
            bench.device.launch_graph(graph, bench.a)
            bench.device.synchronize(bench.a)
            np.testing.assert_array_equal(bench.target, factor * np.arange(16))
        with pytest.raises(DeviceMisuseError, match="a graph still refers to"):
            bench.device.free(bench.there.address)
        bench.device.destroy_graph(graph)
        bench.owned.close()
        bench.device.check_released()

    def test_races_inside_a_capture(self, bench: Bench) -> None:
        bench.device.begin_capture(bench.a)
        bench.order(bench.a, bench.b)
        bench.double(bench.a)
        with pytest.raises(DeviceMisuseError, match="touch the same memory"):
            bench.double(bench.b)

    def test_a_launch_races_with_other_streams(self, bench: Bench) -> None:
        bench.device.begin_capture(bench.a)
        bench.double(bench.a)
        graph = bench.device.end_capture(bench.a)
        bench.up(bench.b)
        with pytest.raises(DeviceMisuseError, match="graph and copy_to_device"):
            bench.device.launch_graph(graph, bench.a)

    def test_a_side_stream_that_was_not_joined(self, bench: Bench) -> None:
        bench.device.begin_capture(bench.a)
        bench.order(bench.a, bench.b)
        bench.double(bench.b)
        with pytest.raises(DeviceMisuseError, match="did not wait for"):
            bench.device.end_capture(bench.a)

    def test_events_do_not_cross_the_border_of_a_capture(self, bench: Bench) -> None:
        bench.device.record_event(bench.event, bench.b)
        bench.device.begin_capture(bench.a)
        with pytest.raises(DeviceMisuseError, match="outside its capture"):
            bench.device.wait_event(bench.a, bench.event)
        bench.device.record_event(bench.event, bench.a)
        bench.device.destroy_graph(bench.device.end_capture(bench.a))
        with pytest.raises(DeviceMisuseError, match="capture that has ended"):
            bench.device.wait_event(bench.b, bench.event)

    def test_what_no_capture_may_contain(self, bench: Bench) -> None:
        bench.device.begin_capture(bench.a)
        for forbidden in (
            lambda: bench.device.synchronize(bench.b),
            lambda: bench.device.allocate(16),
            lambda: bench.device.allocate_pinned(16),
            lambda: bench.device.free(bench.there.address),
        ):
            with pytest.raises(DeviceMisuseError, match="while a stream is captured"):
                forbidden()
        with pytest.raises(DeviceMisuseError, match="captured already"):
            bench.device.begin_capture(bench.a)


class TestArrays:
    def test_device_arrays_are_seen_without_a_copy(self, bench: Bench) -> None:
        found = as_device_array(bench.there)
        assert (found.address, found.shape, found.dtype) == (bench.there.address, (16,), np.dtype(np.float32))
        assert is_device_array(bench.there)
        assert not is_device_array(bench.target)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"strides": (4, 8)}, r"strides \(4, 8\) are not C-contiguous"),
            ({"strides": (16, 4), "mask": object()}, "is masked"),
        ],
    )
    def test_arrays_that_cannot_be_taken(self, change: dict, message: str) -> None:
        foreign = SimpleNamespace(
            __cuda_array_interface__={"data": (256, False), "shape": (2, 4), "typestr": "<f4", **change}
        )

        with pytest.raises(BackendError, match=message):
            as_device_array(foreign)

    def test_strides_that_say_nothing_new(self) -> None:
        foreign = SimpleNamespace(
            __cuda_array_interface__={
                "data": (256, False),
                "shape": (1, 2, 4),
                "typestr": "|u1",
                "strides": (999, 4, 1),
                "stream": 7,
            }
        )

        found = as_device_array(foreign)
        assert found.stream == 7
        assert isinstance(found, DeviceArray)
        assert found.nbytes == 8
