"""Engines that `ebseg build` made for TensorRT for RTX are found, and pass every check up to the deserialiser."""

from __future__ import annotations

from pathlib import Path

import pytest
from ebseg_deploy.errors import BackendError
from ebseg_deploy.runtime.backends.tensorrt_backend import TensorRtBackend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.device import RecordingDevice
from fake_tensorrt import FakeTensorRt


def test_a_real_engine_reaches_the_deserialiser_where_it_fits(tiny_bundle_copy: Path) -> None:
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
    from ebseg_deploy.export.engines.build import BuildRequest, build_engines

    request = BuildRequest(bundle=tiny_bundle_copy, target="tensorrt-rtx", graphs=("open_vocab_head",))
    [engine] = build_engines(request)
    bundle = Bundle.open(tiny_bundle_copy)
    record = bundle.graph("open_vocab_head")
    for capability, plans in (((8, 9), 1), ((9, 0), 0)):
        gpu = RecordingDevice(capability)
        trt = FakeTensorRt(gpu, refuse=True)  # a real plan means nothing to it
        trt.__version__ = tensorrt_rtx.__version__
        backend = TensorRtBackend("tensorrt-rtx", device=gpu, module=trt)
        plan = backend.graph_file(bundle, record)
        assert plan == engine.plan
        message = "TensorRT refused the engine" if plans else r"this GPU has 9\.0"
        with pytest.raises(BackendError, match=message):
            backend.open(plan, spec=record.spec)
        assert trt.plans == plans
