"""`ebseg bench latency` times engines as they run: as one, with nothing copied between them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ebseg_deploy.benchmarks.latency import LatencyConfig, measure_latency
from ebseg_deploy.contract import GRAPH_NAMES
from ebseg_deploy.runtime.backends import tensorrt_backend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.device import RecordingDevice
from fake_tensorrt import FakeTensorRt

ENGINES = list(GRAPH_NAMES[:4])


def test_the_whole_way_is_timed_without_a_copy_between_engines(
    engine_bundle: Path, labelling_device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = labelling_device
    trt = FakeTensorRt(device)
    monkeypatch.setattr(tensorrt_backend, "CudaPythonDevice", lambda: device)
    monkeypatch.setattr(tensorrt_backend, "load_tensorrt", lambda target: trt)
    bundle = Bundle.open(engine_bundle)
    config = LatencyConfig(repeats=3, warmup=2, backend="tensorrt-rtx", classes_count=5, sentinel=False)
    marks: list[int] = []
    report = measure_latency(bundle, config, progress=lambda done, total: marks.append(len(device.operations)))
    assert report.end_to_end.runs == 3
    assert report.graphs.keys() == set(GRAPH_NAMES)
    assert all(each.alone.runs == 3 and each.pipeline is None for each in report.graphs.values())
    # The fifth run: the picture, one launch of four engines, the label map with a flag to and fro.
    names = [each.name for each in device.operations[marks[3] : marks[4]]]
    assert names == ["copy_to_device"] * 2 + ["graph", "copy_to_device", "label_map_u8"] + ["copy_to_host"] * 2
    assert trt.live_contexts == 0


@pytest.mark.parametrize("fails", ["the whole way", "graph by graph"])
def test_an_error_leaves_nothing_open(
    engine_bundle: Path, labelling_device: RecordingDevice, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    device = labelling_device
    trt = FakeTensorRt(device)
    monkeypatch.setattr(tensorrt_backend, "CudaPythonDevice", lambda: device)
    monkeypatch.setattr(tensorrt_backend, "load_tensorrt", lambda target: trt)
    config = LatencyConfig(repeats=2, warmup=1, backend="tensorrt-rtx", classes_count=5, sentinel=False)
    last = {"the whole way": 2, "graph by graph": 5}[fails]

    def stop(done: int, total: int) -> None:
        if done == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_latency(Bundle.open(engine_bundle), config, progress=stop)
    assert trt.live_contexts == 0
