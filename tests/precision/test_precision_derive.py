"""A bundle of another precision from an FP32 one: whole or not at all, checked graph by graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from ebseg_deploy.contract import GraphRecord
from ebseg_deploy.errors import BackendError, BundleError, ExportError, InputError, ParityError
from ebseg_deploy.export.engines.build import BuildRequest
from ebseg_deploy.export.engines.plan import plan_build
from ebseg_deploy.export.precision.derive import DeriveConfig, check_keeps, derive_bundle
from ebseg_deploy.export.precision.recipes import BF16, FP16, Keep, recipe_named
from ebseg_deploy.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.segmenter import Segmenter
from ebseg_deploy.runtime.verify import verify_bundle
from tiny_bundles import TINY_SIZES, add_references, write_tiny_bundle

CONFIG = DeriveConfig(threads=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny FP32 bundle with references, two canvases; do not change it."""
    folder = tmp_path_factory.mktemp("source") / "tiny.ebseg"
    write_tiny_bundle(folder)
    return Bundle.open(add_references(folder))


@pytest.fixture(scope="module")
def fp16(source: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return derive_bundle(source, tmp_path_factory.mktemp("made") / "fp16.ebseg", FP16, CONFIG)


def test_is_a_bundle_like_any_other(fp16: Bundle, source: Bundle, picture_pixels: np.ndarray) -> None:
    opened = Bundle.open(fp16.path)  # every hash and the seal
    assert opened.precisions == ("fp16",)
    assert opened.sizes == source.sizes
    assert opened.manifest.text == source.manifest.text
    assert [record.spec for record in opened.manifest.graphs] == [
        source.graph(record.name, record.size).spec for record in opened.manifest.graphs
    ]
    with OnnxRuntimeBackend(threads=1) as backend:
        outputs = verify_bundle(opened, backend)
    assert len(outputs) == 34
    assert all(output.passed for output in outputs)
    with Segmenter.load(opened, threads=1) as segmenter:
        words = segmenter.vocabulary(["cat", "dog", "road"])
        assert segmenter(picture_pixels, words).labels.shape == picture_pixels.shape[:2]


def test_says_what_it_computes_in_and_where_it_came_from(fp16: Bundle, source: Bundle) -> None:
    compute = {record.name: record.compute for record in fp16.manifest.graphs}
    assert compute["sam_image_encoder"] is not None
    assert compute["sam_image_encoder"].base == "fp16"
    assert compute["sam_image_encoder"].casts > 0
    assert compute["open_vocab_head"] is not None
    assert compute["open_vocab_head"].base == "fp32"
    assert fp16.manifest.provenance["recipe"] == "fp16"
    assert fp16.manifest.provenance["derived_from_seal"] == source.manifest.seal
    for record in fp16.manifest.graphs:
        assert set(record.parity) == {tensor.name for tensor in record.spec.outputs}
    changed = [record for record in fp16.manifest.graphs if record.name != "open_vocab_head"]
    assert all(max(record.parity.values()) > 0 for record in changed)


def test_weights_are_half(fp16: Bundle) -> None:
    record = fp16.graph("sam_image_encoder", TINY_SIZES[0])
    convolutions = [node for node in ir.load(fp16.file(record.file)).graph if node.op_type == "Conv"]
    assert len(convolutions) == 4
    assert {value.dtype for node in convolutions for value in node.inputs[1:] if value is not None} == {
        ir.DataType.FLOAT16
    }


def test_bf16_says_where_it_runs(source: Bundle, tmp_path: Path) -> None:
    made = derive_bundle(source, tmp_path / "bf16.ebseg", BF16, CONFIG)
    record = made.graph("sam_image_encoder", TINY_SIZES[0])
    with OnnxRuntimeBackend(threads=1) as backend, pytest.raises(BackendError, match=r"no BF16 kernels.*ebseg build"):
        backend.graph_file(made, record)


@pytest.mark.parametrize("recipe", [FP16, BF16], ids=["fp16", "bf16"])
def test_emulated_runs_anywhere_and_is_no_engine(recipe: object, source: Bundle, tmp_path: Path) -> None:
    config = DeriveConfig(threads=1, emulate=True)
    made = derive_bundle(source, tmp_path / "emulated.ebseg", recipe, config)  # type: ignore[arg-type]
    assert all(record.compute is not None and record.compute.emulated for record in made.manifest.graphs)
    with OnnxRuntimeBackend(threads=1) as backend:
        assert all(output.passed for output in verify_bundle(made, backend))
    with pytest.raises(InputError, match="emulates its precision in FP32"):
        plan_build(BuildRequest(bundle=made.path, target="tensorrt-rtx"))


def test_only_fp32_can_be_derived_from(fp16: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its graphs are fp16 already; give the FP32 bundle"):
        derive_bundle(fp16, tmp_path / "again.ebseg", FP16, CONFIG)
    assert not (tmp_path / "again.ebseg").exists()


def test_output_that_is_there(source: Bundle, fp16: Bundle) -> None:
    with pytest.raises(InputError, match="exists; give --overwrite"):
        derive_bundle(source, fp16.path, FP16, CONFIG)


def test_no_references(make_tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bare = Bundle.open(make_tiny_bundle("bare.ebseg"))
    with pytest.raises(BundleError, match="no references"):
        derive_bundle(bare, tmp_path / "out.ebseg", FP16, CONFIG)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_interruption_leaves_nothing(source: Bundle, tmp_path: Path) -> None:
    def interrupt(step: str, done: int, total: int) -> None:
        if step.startswith("checking adab_decoder"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derive_bundle(source, tmp_path / "out.ebseg", FP16, CONFIG, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_full_disk(source: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(ExportError, match=r"GB free on the disk"):
        derive_bundle(source, tmp_path / "out.ebseg", FP16, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_graph_is_found_and_not_written(source: Bundle, tmp_path: Path) -> None:
    def damage(record: GraphRecord, model: ir.Model, folder: Path) -> None:
        if record.name != "sam_image_encoder":
            return
        conv = next(node for node in model.graph if node.op_type == "Conv")
        weight = conv.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        weight.const_value = ir.Tensor(1.1 * weight.const_value.numpy(), name=weight.name)

    with pytest.raises(ParityError, match=r"sam_image_encoder: sam_feature_.*from FP32 exceeds 1e-02 \(fp16"):
        derive_bundle(source, tmp_path / "out.ebseg", FP16, CONFIG, transform=damage)
    assert list(tmp_path.iterdir()) == []


def test_the_node_that_overflows_is_named(source: Bundle, tmp_path: Path) -> None:
    def detour(record: GraphRecord, model: ir.Model, folder: Path) -> None:
        """Twice 60,000 times as much, and back again: nothing in FP32."""
        if record.name != "adab_decoder":
            return
        total = next(node for node in model.graph if node.op_type == "Sum")
        tensor = ir.tensor(np.array(6e4, np.float32), name="factor")
        factor = ir.Value(name="factor", type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.register_initializer(factor)
        start = value = total.outputs[0]
        nodes = []
        for name in ("up/Mul", "further/Mul", "down/Div", "back/Div"):
            output = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
            nodes.append(ir.Node("", name.rpartition("/")[2], [value, factor], outputs=[output], name=name))
            value = output
        start.replace_all_uses_with(value)
        nodes[0].replace_input_with(0, start)
        model.graph.insert_after(total, nodes)

    with pytest.raises(
        ParityError, match=r"graph adab_decoder: node further/Mul overflows in fp16; add --keep 'further/Mul'"
    ):
        derive_bundle(source, tmp_path / "out.ebseg", FP16, CONFIG, transform=detour)
    assert list(tmp_path.iterdir()) == []


def test_keeps_must_fit_something(source: Bundle) -> None:
    check_keeps(source, [Keep(pattern="*", reason="for the test")])
    with pytest.raises(InputError, match=r"--keep layers\.99\*: no node .* has such a name"):
        check_keeps(source, [Keep(pattern="layers.99*", reason="for the test")])


def test_keeping_everything_is_fp32(source: Bundle, tmp_path: Path) -> None:
    recipe = FP16.keeping(Keep(pattern="*", reason="for the test"))
    made = derive_bundle(source, tmp_path / "kept.ebseg", recipe, CONFIG)
    assert max(value for record in made.manifest.graphs for value in record.parity.values()) == 0.0


def test_hard_linked_weights_are_read(source: Bundle, tmp_path: Path) -> None:
    """A frugal copy of a bundle; onnx's own reader takes it for an attack."""
    linked = tmp_path / "linked.ebseg"
    shutil.copytree(source.path, linked, copy_function=lambda a, b: Path(b).hardlink_to(a))
    made = derive_bundle(Bundle.open(linked), tmp_path / "out.ebseg", FP16, CONFIG)
    assert made.precisions == ("fp16",)


def test_unknown_recipe() -> None:
    with pytest.raises(InputError, match="recipe 'fp12': unknown; choose from fp16, bf16"):
        recipe_named("fp12")
