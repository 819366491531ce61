"""The table of known faults: whom its conditions meet."""

from __future__ import annotations

import pytest
from ebseg_deploy.contract import GraphName, GraphRecord, Size, graph_spec
from ebseg_deploy.runtime.gpu_host import GpuHost
from ebseg_deploy.runtime.known_bad import known_faults
from tiny_bundles import TINY_MODEL

HOST = GpuHost(engine="tensorrt", engine_version="10.8.0", gpu="GPU-1", compute_capability="8.9", driver="1")


def record(name: GraphName, batch: int | str) -> GraphRecord:
    spec = graph_spec(name, TINY_MODEL, Size(height=64, width=64), batch)  # type: ignore[arg-type]
    return GraphRecord(
        name=name, precision="fp32", size=None, file="x.onnx", weights=None, spec=spec, opset=18, parity={}
    )


@pytest.mark.parametrize(("batch", "struck"), [(1, False), (2, True), ("batch", True)])
def test_faults_of_batches_meet_fixed_and_dynamic_ones(batch: int | str, struck: bool) -> None:
    found = [entry.reference for entry in known_faults(HOST, record("sam_image_encoder", batch))]
    assert ("NVIDIA/TensorRT#4853" in found) == struck


def test_the_text_encoders_prompts_are_no_batch() -> None:
    found = [entry.reference for entry in known_faults(HOST, record("text_encoder", 1))]
    assert "NVIDIA/TensorRT#4853" not in found
