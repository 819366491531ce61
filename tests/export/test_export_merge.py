"""The merged graph: what it takes, where its weights are, that its numbers are its parts', and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from ebseg_deploy.cli import ebseg
from ebseg_deploy.contract import ComputeRecord, Size
from ebseg_deploy.errors import BundleError, ExportError, InputError, ParityError
from ebseg_deploy.export import merge as merge_module
from ebseg_deploy.export.merge import merge_graphs, write_merged
from ebseg_deploy.export.merged_spec import MERGED_GRAPHS, merged_prefix
from ebseg_deploy.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ebseg_deploy.runtime.bundle import Bundle
from onnx import TensorProto, helper, numpy_helper
from tiny_bundles import TINY_SIZES, seal, write_tiny_bundle

SIZE = TINY_SIZES[0]


def inputs(bundle: Bundle, classes: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(classes)
    return {
        "image": random.integers(0, 256, (bundle.manifest.batch, 3, SIZE.height, SIZE.width), dtype=np.uint8),
        "valid_size": np.full((bundle.manifest.batch, 2), [50, 60], np.int32),
        "text_embeddings": random.normal(size=(classes + 1, bundle.model.embedding_dim)).astype(np.float32),
        "seen": np.ones(classes, np.float32),
    }


def test_the_numbers_are_those_of_the_single_graphs(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, file = Bundle.open(tiny_bundle), tmp_path / "one" / "m.onnx"
    differences = write_merged(bundle, SIZE, "fp32", file, threads=1)
    assert set(differences) == {"mask_logits", "class_probabilities"}
    spec = merge_graphs(bundle, SIZE, "fp32", tmp_path / "again.onnx")
    assert [tensor.name for tensor in spec.inputs] == ["image", "valid_size", "text_embeddings", "seen"]
    with OnnxRuntimeBackend(threads=1) as backend:
        merged = backend.open(file, spec=spec, name="merged")
        parts = {
            name: backend.open(bundle.file(bundle.graph(name, SIZE).file), spec=None, name=name)
            for name in MERGED_GRAPHS
        }
        for classes in (1, 7):  # N stays dynamic
            tensors = inputs(bundle, classes)
            got = backend.run(merged, dict(tensors))
            for name in MERGED_GRAPHS:
                wanted = [each.name for each in bundle.graph(name, SIZE).spec.inputs]
                tensors |= backend.run(parts[name], {each: tensors[each] for each in wanted})
            assert got["class_probabilities"].shape == (1, bundle.model.queries, classes)
            for name, array in got.items():
                np.testing.assert_allclose(array, tensors[name], rtol=0, atol=1e-5)


def test_every_domain_of_the_parts_is_declared(tmp_path: Path) -> None:
    """As of graphs of the recipe int8-cpu, which has operators of ONNX Runtime's own."""
    folder = write_tiny_bundle(tmp_path / "q.ebseg", sizes=(SIZE,))
    bundle = Bundle.open(folder)
    file = bundle.file(bundle.graph("sam_image_encoder", SIZE).file)
    model = onnx.load(file)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, file)
    bundle = Bundle.open(seal(folder, bundle.manifest))
    merge_graphs(bundle, SIZE, "fp32", tmp_path / "m.onnx")
    merged = {each.domain: each.version for each in onnx.load(tmp_path / "m.onnx").opset_import}
    assert merged == {"": bundle.graph("sam_image_encoder", SIZE).opset, "com.microsoft": 1}


def test_nodes_are_named_after_their_graph(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    merge_graphs(bundle, SIZE, "fp32", tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    count = 0
    for name in MERGED_GRAPHS:
        single = onnx.load(bundle.file(bundle.graph(name, SIZE).file))
        own = [node for node in model.graph.node if node.name.startswith(merged_prefix(name))]
        assert [node.op_type for node in own] == [node.op_type for node in single.graph.node]
        count += len(own)
    assert count == len(model.graph.node)
    assert {each.key: each.value for each in model.metadata_props}["ebseg.size"] == "64x64"


def with_weights(bundle: Path) -> Path:
    """The tiny bundle with the decoder's weights in a file of their own."""
    manifest = Bundle.open(bundle).manifest
    graphs = []
    for record in manifest.graphs:
        if record.name == "adab_decoder":
            model = onnx.load(bundle / record.file)
            name = f"decoder_{record.size}.weights"
            onnx.save(model, bundle / record.file, save_as_external_data=True, location=name, size_threshold=128)
            record = msgspec.structs.replace(record, weights=str(Path(record.file).with_name(name)))
        graphs.append(record)
    return seal(bundle, msgspec.structs.replace(manifest, graphs=tuple(graphs)))


def test_weights_are_linked_and_not_copied(
    tiny_bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(with_weights(tiny_bundle_copy))
    weights = bundle.file(bundle.graph("adab_decoder", SIZE).weights or "")
    write_merged(bundle, SIZE, "fp32", tmp_path / "one/m.onnx", threads=1)
    assert (tmp_path / "one" / weights.name).samefile(weights)
    # In the same folder nothing is linked at all, and a second graph shares the first one's link.
    write_merged(bundle, SIZE, "fp32", weights.parent / "merged.onnx", threads=1)
    write_merged(bundle, SIZE, "fp32", tmp_path / "one/n.onnx", threads=1)

    def refuse(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write_merged(bundle, SIZE, "fp32", tmp_path / "two/m.onnx", threads=1)
    copy = tmp_path / "two" / weights.name
    assert copy.read_bytes() == weights.read_bytes()
    assert not copy.samefile(weights)
    copy.write_bytes(b"another's")
    with pytest.raises(InputError, match="exists and is another file"):
        write_merged(bundle, SIZE, "fp32", tmp_path / "two/n.onnx", threads=1)
    assert not (tmp_path / "two/n.onnx").exists()


def half(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(values.astype(np.float16), name)


def test_casts_that_undo_each_other_at_a_border_are_left_out(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    """sam_feature_0 is widened by the encoder for the border and narrowed by the decoder behind it."""
    bundle = Bundle.open(tiny_bundle_copy)
    encoder = bundle.graph("sam_image_encoder", SIZE).file
    model = onnx.load(tiny_bundle_copy / encoder)
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == "sam_feature_0":
                node.output[i] = "wide"
    model.graph.node.append(helper.make_node("Cast", ["wide"], ["narrow"], name="down", to=TensorProto.FLOAT16))
    model.graph.node.append(helper.make_node("Cast", ["narrow"], ["sam_feature_0"], name="up", to=TensorProto.FLOAT))
    model.graph.value_info.append(helper.make_tensor_value_info("narrow", TensorProto.FLOAT16, [1, 8, 4, 4]))
    onnx.save(model, tiny_bundle_copy / encoder)
    decoder = bundle.graph("adab_decoder", SIZE).file
    model = onnx.load(tiny_bundle_copy / decoder)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == "sam_feature_0" and node.op_type == "ReduceMean":
                node.input[i] = "back"
    model.graph.node.insert(0, helper.make_node("Cast", ["half"], ["back"], name="up", to=TensorProto.FLOAT))
    model.graph.node.insert(
        0, helper.make_node("Cast", ["sam_feature_0"], ["half"], name="down", to=TensorProto.FLOAT16)
    )
    onnx.save(model, tiny_bundle_copy / decoder)
    seal(tiny_bundle_copy, bundle.manifest)
    write_merged(Bundle.open(tiny_bundle_copy), SIZE, "fp32", tmp_path / "m.onnx", threads=1)
    names = {node.name for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert {"sam_image_encoder/down", "sam_image_encoder/up", "adab_decoder/up"} <= names  # the sum reads the wide one
    assert "adab_decoder/down" not in names


def test_a_graph_that_differs_from_its_parts_is_not_left(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    real = merge_module._compose

    def planted(*arguments: object) -> object:
        model = real(*arguments)  # type: ignore[arg-type]
        for value in model.graph.initializers.values():
            if value.const_value is not None and value.const_value.size == 1 and "adab" in (value.name or ""):
                continue
            if "adab_decoder" in (value.name or "") and value.const_value is not None:
                array = value.const_value.numpy()
                if array.dtype == np.float32 and array.ndim == 4:
                    value.const_value = merge_module.ir.Tensor(array * 2, name=value.name)
        return model

    monkeypatch.setattr(merge_module, "_compose", planted)
    with pytest.raises(ParityError, match=r"merged graph: mask_logits: relative deviation"):
        write_merged(bundle, SIZE, "fp32", tmp_path / "m.onnx", threads=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checked", [True, False])
def test_a_wire_in_the_wrong_place_is_seen_in_every_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    """The decoder reads one of SAM's features twice, which the tolerance at the end of INT8's chain lets pass."""
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "q.ebseg", sizes=(SIZE,), precisions=("int8",)))
    real = merge_module._compose

    def crossed(*arguments: object) -> object:
        model = real(*arguments)  # type: ignore[arg-type]
        values = {value.name: value for node in model.graph for value in node.outputs}
        for node, index in list(values["sam_feature_1"].uses()):
            node.replace_input_with(index, values["sam_feature_0"])
        return model

    monkeypatch.setattr(merge_module, "_compose", crossed)
    if not checked:
        monkeypatch.setattr(merge_module, "_check_wires", lambda *arguments: None)
        write_merged(bundle, SIZE, "int8", tmp_path / "one/m.onnx", threads=1)
        return
    with pytest.raises(ParityError, match=r"merged graph: mask_logits: relative deviation .* exceeds 1e-02 \(int8;"):
        write_merged(bundle, SIZE, "int8", tmp_path / "one/m.onnx", threads=1)
    assert list((tmp_path / "one").iterdir()) == []


def test_graphs_of_other_batches_do_not_fit(tmp_path: Path) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "two.ebseg", batch=2, sizes=(SIZE,)))
    write_merged(bundle, SIZE, "fp32", tmp_path / "m.onnx", threads=1)
    one = Bundle.open(write_tiny_bundle(tmp_path / "one.ebseg", sizes=(SIZE,)))
    file = bundle.graph("sam_image_encoder", SIZE).file
    (bundle.path / file).write_bytes((one.path / file).read_bytes())
    with pytest.raises(ExportError, match=r"adab_decoder takes sam_feature_0|sam_image_encoder takes image"):
        merge_graphs(bundle, SIZE, "fp32", tmp_path / "n.onnx")


def test_what_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(BundleError, match="no canvas 32x32"):
        write_merged(bundle, Size(height=32, width=32), "fp32", tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"m\.onnx exists; give another -o"):
        write_merged(bundle, SIZE, "fp32", tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"mine"
    with pytest.raises(ExportError, match="cannot be written"):
        write_merged(bundle, SIZE, "fp32", tmp_path / "m.onnx" / "below.onnx")


def test_bf16_cannot_be_checked_on_a_cpu(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(tiny_bundle_copy).manifest
    for emulated in (False, True):
        compute = ComputeRecord(base="bf16", emulated=emulated)
        graphs = tuple(msgspec.structs.replace(record, compute=compute) for record in manifest.graphs)
        bundle = Bundle.open(seal(tiny_bundle_copy, msgspec.structs.replace(manifest, graphs=graphs)))
        if emulated:
            write_merged(bundle, SIZE, "fp32", tmp_path / "m.onnx", threads=1)
            continue
        with pytest.raises(InputError, match=r"cannot compute BF16 on a CPU.*without --merged"):
            write_merged(bundle, SIZE, "fp32", tmp_path / "m.onnx", threads=1)
        assert list(tmp_path.glob("m.onnx*")) == []


def test_the_command(tiny_bundle: Path, tmp_path: Path) -> None:
    words = ["merge", str(tiny_bundle), "--size", "64x96", "-o", str(tmp_path / "x.onnx")]
    outcome = CliRunner().invoke(ebseg, [*words, "--json"])
    assert outcome.exit_code == 0, outcome.output
    answer = json.loads(outcome.stdout)
    assert answer["inputs"][0] == {"name": "image", "dtype": "uint8", "shape": [1, 3, 64, 96]}
    assert answer["largest_difference"]["mask_logits"] < 1e-4
    again = CliRunner().invoke(ebseg, words)
    assert again.exit_code == 1
    assert again.stderr.startswith("error: ")
    assert "exists; give another -o" in again.stderr
    shown = CliRunner().invoke(ebseg, ["inspect", str(tmp_path / "x.onnx")])
    assert "text_embeddings" in shown.stdout
    wrong = CliRunner().invoke(ebseg, [*words[:-1], str(tmp_path / "folder")])
    assert "folder: no .onnx file" in wrong.stderr
