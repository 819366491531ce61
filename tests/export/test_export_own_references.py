"""A derived bundle keeps what its own graphs give, and the sentinel holds a GPU against that."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from ebseg_deploy.contract import ComputeRecord, GraphRecord, Size
from ebseg_deploy.errors import BackendError, ExportError
from ebseg_deploy.export.precision.derive import DeriveConfig, derive_bundle
from ebseg_deploy.export.precision.own_references import OwnReferences
from ebseg_deploy.export.precision.recipes import recipe_named
from ebseg_deploy.export.run import ExportRequest, export_checkpoint
from ebseg_deploy.runtime.backends import open_backend
from ebseg_deploy.runtime.backends.fake import FakeBackend
from ebseg_deploy.runtime.bundle import Bundle, read_manifest
from ebseg_deploy.runtime.gpu_host import GpuHost
from ebseg_deploy.runtime.parity import TOLERANCES
from ebseg_deploy.runtime.segmenter import Segmenter
from ebseg_deploy.runtime.verify import OWN_TOLERANCES, own_tolerance, read_reference, verify_bundle
from tiny_bundles import add_references, seal, write_tiny_bundle

SIZES = (Size(height=64, width=64), Size(height=64, width=96))
HOST = GpuHost(engine="tensorrt", engine_version="10.9", gpu="GPU-1", compute_capability="8.6", driver="550.54")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """References by the graphs of seed 3, graphs of seed 4: as a derived bundle, whose numbers differ."""
    first = add_references(write_tiny_bundle(tmp_path / "first.ebseg", sizes=SIZES, seed=3))
    other = write_tiny_bundle(tmp_path / "other.ebseg", sizes=SIZES, seed=4)
    (other / "references").mkdir()
    for file in (first / "references").iterdir():
        (other / "references" / file.name).write_bytes(file.read_bytes())
    manifest = msgspec.structs.replace(read_manifest(other), references=read_manifest(first).references)
    return Bundle.open(seal(other, manifest))


def with_own(bundle: Bundle, precision: str = "fp32") -> Bundle:
    own = OwnReferences(bundle, bundle.path, precision, threads=1)
    for record in bundle.manifest.graphs:
        own.add(record)
    references = (*bundle.manifest.references, *own.write())
    return Bundle.open(seal(bundle.path, msgspec.structs.replace(bundle.manifest, references=references)))


def test_the_chain_of_the_graphs_themselves(bundle: Bundle) -> None:
    made = with_own(bundle)
    records = [each for each in made.manifest.references if each.precision == "fp32"]
    assert [(each.size, each.file) for each in records] == [
        (size, f"references/{size}.fp32.safetensors") for size in SIZES
    ]
    for record, torch in zip(records, bundle.manifest.references, strict=True):
        own, given = read_reference(made, record), read_reference(made, torch)
        assert own.keys() == given.keys()
        np.testing.assert_array_equal(own["image"], given["image"])
        assert not np.allclose(own["expected.class_probabilities"], given["expected.class_probabilities"])
    with open_backend("onnxruntime", threads=1) as backend:
        # PyTorch's references alone count for `verify`, and these graphs are not PyTorch's.
        assert not all(each.passed for each in verify_bundle(made, backend))


def test_the_sentinel_takes_them(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BackendError, match="sentinel: clip_image_encoder"):
        warm_up(bundle)
    warm_up(with_own(bundle))


def warm_up(bundle: Bundle, size: Size = SIZES[0]) -> None:
    """The sentinel's check of what the bundle's graphs compute, as if on a GPU."""
    engine = open_backend("onnxruntime", threads=1)

    def compute(record: GraphRecord) -> object:
        graph = engine.open(bundle.file(record.file), spec=record.spec)
        return lambda inputs: engine.run(graph, inputs)

    graphs = {each.name: compute(each) for each in bundle.manifest.graphs if each.size in (size, None)}
    with engine, Segmenter.load(bundle, FakeBackend(graphs, host=HOST)) as segmenter:  # type: ignore[arg-type]
        segmenter.warm_up(size)


@pytest.mark.slow
def test_bilinear_sampling_that_takes_the_nearest_point_is_seen_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault of NVIDIA/TensorRT#4646, planted in the trained nano's FP16 decoder."""
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    whole = export_checkpoint(ExportRequest(model="ebseg-nano", output=tmp_path / "nano.ebseg", threads=1))
    config = DeriveConfig(threads=1)
    half = derive_bundle(whole, tmp_path / "half.ebseg", recipe_named("fp16"), config)
    warm_up(half, half.sizes[0])
    record = half.graph("adab_decoder", half.sizes[0])
    model = onnx.load(half.file(record.file), load_external_data=False)
    sampling = [node for node in model.graph.node if node.op_type == "GridSample"]
    for node in sampling:
        (mode,) = (each for each in node.attribute if each.name == "mode")
        mode.s = b"nearest"
    assert len(sampling) > 2
    onnx.save(model, half.file(record.file))
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "another"))
    with pytest.raises(BackendError, match="sentinel: adab_decoder fp16 gives wrong numbers"):
        warm_up(half, half.sizes[0])


def test_a_graph_that_does_not_run_is_an_error(bundle: Bundle) -> None:
    own = OwnReferences(bundle, bundle.path, "fp32", threads=1)
    record = bundle.manifest.graphs[0]
    bundle.file(record.file).write_bytes(b"no graph")
    with pytest.raises(ExportError, match="ebseg doctor"):
        own.add(record)


def test_bounds_by_the_coarsest_graph(bundle: Bundle) -> None:
    record = bundle.graph("clip_image_encoder", SIZES[0])
    half, whole = ComputeRecord(base="fp16"), ComputeRecord(base="fp16", quantised="int8")
    records = [msgspec.structs.replace(record, compute=compute) for compute in (None, half, whole)]
    assert own_tolerance("sam_feature_0", records[:1]) == OWN_TOLERANCES["fp32"][0]
    assert own_tolerance("sam_feature_0", records[:2]) == OWN_TOLERANCES["fp16"][0]
    assert own_tolerance("mask_logits", records) == OWN_TOLERANCES["int8"][1]
    assert OWN_TOLERANCES.keys() <= TOLERANCES.keys()
