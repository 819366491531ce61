"""What an exported bundle holds: five graphs, their borders, their weights, and numbers that are the model's.

`ebseg verify` is here too: all of it needs one exported bundle, made once.
"""

from __future__ import annotations

import getpass
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import ebseg_deploy
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ebseg_deploy.contract import GRAPH_NAMES, SIZED_GRAPHS, VILD_TEMPLATES, GraphRecord, Size, graph_spec
from ebseg_deploy.errors import BundleError
from ebseg_deploy.export.bundle_writer import ExportConfig, export_bundle
from ebseg_deploy.model.text import text_identity
from ebseg_deploy.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.parity import TOLERANCES
from ebseg_deploy.runtime.verify import verify_bundle
from tiny_models import tiny_model

TYPES = {
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.FLOAT: "float32",
}


def graphs(bundle: Bundle) -> list[tuple[GraphRecord, onnx.ModelProto]]:
    return [
        (record, onnx.load(bundle.file(record.file), load_external_data=False)) for record in bundle.manifest.graphs
    ]


def session(bundle: Bundle, name: Any, size: Size | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(bundle.file(bundle.graph(name, size).file)), options)


def unit_rows(random: np.random.Generator, *shape: int) -> np.ndarray:
    rows = random.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def test_every_graph_at_every_size(exported: Bundle) -> None:
    found = {(record.name, record.size) for record in exported.manifest.graphs}
    assert found == {
        (name, size) for name in GRAPH_NAMES for size in (exported.sizes if name in SIZED_GRAPHS else (None,))
    }
    assert exported.precisions == ("fp32",)
    assert exported.manifest.batch == 2


def test_borders_are_the_contracts(exported: Bundle) -> None:
    for record, proto in graphs(exported):
        spec = graph_spec(record.name, exported.model, record.size, batch=2)
        assert record.spec == spec
        for values, tensors in ((proto.graph.input, spec.inputs), (proto.graph.output, spec.outputs)):
            assert [value.name for value in values] == [tensor.name for tensor in tensors]
            for value, tensor in zip(values, tensors, strict=True):
                border = value.type.tensor_type
                assert TYPES[border.elem_type] == tensor.dtype
                assert tuple(d.dim_param or d.dim_value for d in border.shape.dim) == tensor.shape


def test_opset_operators_and_metadata(exported: Bundle) -> None:
    for record, proto in graphs(exported):
        assert [(each.domain, each.version) for each in proto.opset_import] == [("", 18)]
        assert record.opset == 18
        assert {node.domain for node in proto.graph.node} == {""}
        assert not proto.functions
        assert proto.producer_name == "ebseg-deploy"
        assert proto.graph.name == record.name
        properties = {each.key: each.value for each in proto.metadata_props}
        assert properties["ebseg.graph"] == record.name
        assert properties["ebseg.precision"] == "fp32"
        assert properties["ebseg.batch"] == "2"
        assert properties["ebseg.version"] == ebseg_deploy.__version__
        assert properties.get("ebseg.size") == (str(record.size) if record.size else None)


def test_nodes_are_named_after_their_place(exported: Bundle) -> None:
    for record, proto in graphs(exported):
        names = [node.name for node in proto.graph.node]
        assert all(names)
        assert [name for name, count in Counter(names).items() if count > 1] == []
        assert not any(re.fullmatch(r"node_.*|.*_\d+_\d+", name) for name in names), record.name
    decoder = onnx.load(exported.file(exported.graph("adab_decoder", exported.sizes[0]).file), load_external_data=False)
    places = {node.name.split("/")[0] for node in decoder.graph.node if "/" in node.name}
    assert any("pixel_decoder" in place for place in places)
    assert any("masked_decoder" in place for place in places)
    assert any("mask_attention" in place for place in places)


def test_graphs_pass_the_checker(exported: Bundle) -> None:
    for record in exported.manifest.graphs:
        onnx.checker.check_model(str(exported.file(record.file)), full_check=True)


def test_no_path_of_this_machine(exported: Bundle, tmp_path: Path) -> None:
    needles = {str(Path(ebseg_deploy.__file__).parent), str(exported.path.parent), str(Path.home()), str(Path.cwd())}
    needles |= {"site-packages", f"/home/{getpass.getuser()}"}
    for path in exported.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for needle in needles - {"/"}:
                assert needle.encode() not in content, f"{path.name} holds {needle}"


def test_sizes_share_their_weights(exported: Bundle, tmp_path: Path) -> None:
    for name in SIZED_GRAPHS:
        records = [record for record in exported.manifest.graphs if record.name == name]
        assert len({record.weights for record in records}) == 1
        places = []
        for record in records:
            proto = onnx.load(exported.file(record.file), load_external_data=False)
            external = [tensor for tensor in proto.graph.initializer if tensor.external_data]
            fields = [{each.key: each.value for each in tensor.external_data} for tensor in external]
            assert {each["location"] for each in fields} == {Path(record.weights or "").name}
            places.append({int(each["offset"]): int(each["length"]) for each in fields})
            assert all(offset % 4096 == 0 for offset in places[-1])
        shared = sum(places[0][offset] for offset in places[0].keys() & places[1].keys())
        assert shared > 0.6 * sum(places[0].values())
        assert exported.file(records[0].weights or "").stat().st_size < 0.8 * sum(
            sum(each.values()) + 4096 * len(each) for each in places
        )


@pytest.mark.parametrize("classes", [1, 2, 5, 300])
def test_any_number_of_classes(exported: Bundle, classes: int) -> None:
    random = np.random.default_rng(classes)
    feeds = {f"embeddings_{which}": unit_rows(random, 2, 12, 24) for which in "abd"}
    feeds["embeddings_a"] *= 10
    feeds["text_embeddings"] = unit_rows(random, classes + 1, 24)
    feeds["seen"] = (np.arange(classes) % 2).astype(np.float32)
    (found,) = session(exported, "open_vocab_head").run(None, feeds)
    head = tiny_model("tiny-b").open_vocab_head()
    expected = head(*(torch.from_numpy(feeds[tensor.name]) for tensor in exported.graph("open_vocab_head").spec.inputs))
    assert found.shape == (2, 12, classes)
    # The three sets disagree here, so that shares lie below 1e-8 and its survival in the graph is seen.
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("prompts", [1, 2, 33])
def test_any_number_of_prompts(exported: Bundle, prompts: int) -> None:
    tokens = np.random.default_rng(prompts).integers(1, 40000, (prompts, 77)).astype(np.int32)
    tokens[:, 60] = 49407
    (found,) = session(exported, "text_encoder").run(None, {"tokens": tokens})
    with torch.no_grad():
        expected = tiny_model("tiny-b").text_encoder()(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


def test_parity_figures_cover_every_output(exported: Bundle) -> None:
    for record in exported.manifest.graphs:
        assert set(record.parity) == {tensor.name for tensor in record.spec.outputs}
        assert all(0 <= value < 1e-3 for value in record.parity.values())


def test_manifest_says_what_it_is(exported: Bundle) -> None:
    manifest = exported.manifest
    assert manifest.text.encoder_sha256 == text_identity(tiny_model("tiny-b").ov_classifier)
    assert manifest.text.templates == VILD_TEMPLATES
    assert {"weights", "created", "torch", "onnxruntime", "ebseg-deploy", "python"} <= set(manifest.provenance)
    listed = set(manifest.files) | {"bundle.json"}
    assert listed == {p.relative_to(exported.path).as_posix() for p in exported.path.rglob("*") if p.is_file()}
    assert exported.changed_files() == ()


def test_bundle_verifies(exported: Bundle) -> None:
    seen: list[tuple[int, int]] = []
    with OnnxRuntimeBackend(threads=1) as backend:
        outputs = verify_bundle(exported, backend, progress=lambda done, total: seen.append((done, total)))
    assert [output for output in outputs if not output.passed] == []
    assert {(output.graph, output.size) for output in outputs} == {
        (name, size) for name in GRAPH_NAMES for size in exported.sizes
    }
    assert seen[-1] == (10, 10)


def test_changed_weight_is_a_hash_error(exported: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported.path, tmp_path / "copy.ebseg"))
    weights = copy / "graphs/fp32/sam_image_encoder.weights"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0x40
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"sha256 of graphs/fp32/sam_image_encoder\.weights differs"):
        Bundle.open(copy)


def test_verify_sees_what_hashes_were_not_asked_about(exported: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported.path, tmp_path / "copy.ebseg"))
    weights = copy / "graphs/fp32/sam_image_encoder.weights"
    values = np.fromfile(weights, np.float32)
    (values * np.float32(1.05)).tofile(weights)
    with OnnxRuntimeBackend(threads=1) as backend:
        outputs = verify_bundle(Bundle.open(copy, check_hashes=False), backend)
    failed = {output.output for output in outputs if not output.passed}
    assert {"sam_feature_0", "mask_logits"} <= failed
    assert "clip_dense" not in failed


@pytest.mark.parametrize("name", ["tiny-l", "tiny-nano"])
def test_other_variants(name: str, tmp_path: Path) -> None:
    """Fractional shrinking and uneven pooling (L); mask attention over all blocks (nano)."""
    size = Size(height=64, width=96)
    bundle = export_bundle(
        tiny_model(name), tmp_path / "v.ebseg", ExportConfig(sizes=(size,), threads=1), provenance={"weights": "seeded"}
    )
    assert max(value for record in bundle.manifest.graphs for value in record.parity.values()) < 1e-3
    with OnnxRuntimeBackend(threads=1) as backend:
        assert all(output.passed for output in verify_bundle(bundle, backend))


def test_tolerance_table_has_the_written_precision(exported: Bundle) -> None:
    assert set(exported.precisions) <= set(TOLERANCES)


def ebseg(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ebseg_deploy", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_verify_says_what_passed(exported: Bundle, tmp_path: Path) -> None:
    result = ebseg("verify", exported.path, "--json", "--threads", 1, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["passed"] is True
    assert report["files"] == len(exported.manifest.files)
    assert len(report["outputs"]) == 2 * (7 + 4 + 4 + 1 + 1)
    table = ebseg("verify", exported.path, "--threads", 1, folder=tmp_path)
    assert table.returncode == 0
    assert "class_probabilities" in table.stdout
    assert "DIFFERS" not in table.stdout


@pytest.mark.parametrize("options", [(), ("--hashes-only",)])
def test_verify_fails_on_a_changed_byte(exported: Bundle, tmp_path: Path, options: tuple[str, ...]) -> None:
    copy = Path(shutil.copytree(exported.path, tmp_path / "copy.ebseg"))
    path = copy / "graphs/fp32/adab_decoder.weights"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    result = ebseg("verify", copy, *options, folder=tmp_path)
    assert result.returncode == 1
    assert "sha256 of graphs/fp32/adab_decoder.weights differs" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_verify_hashes_only(exported: Bundle, tmp_path: Path) -> None:
    result = ebseg("verify", exported.path, "--hashes-only", folder=tmp_path)
    assert result.returncode == 0
    assert "are as they were written" in result.stdout
