"""Real engines on a machine without a GPU: what is built, what is kept, what is refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import onnx
import pytest
from ebseg_deploy.contract import MANIFEST_NAME, BundleManifest, ComputeRecord, DimensionRange, KeptRecord
from ebseg_deploy.errors import BackendError, BundleError, ExportError, InputError
from ebseg_deploy.export.engines import build as build_module
from ebseg_deploy.export.engines.build import Engine, build_engines
from ebseg_deploy.export.engines.census import take_census
from ebseg_deploy.export.engines.plan import BuildRequest
from ebseg_deploy.export.engines.script import write_script
from ebseg_deploy.export.owner_mark import STALE_SECONDS, owner_mark
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.engine_file import check_engine, rebuild_command
from onnx import TensorProto, helper
from rtx import needs_rtx
from tiny_bundles import TINY_SIZES, seal

pytestmark = needs_rtx


def build(bundle: Path, precision: str = "fp16", **changes: object) -> list[Engine]:
    return build_engines(BuildRequest(bundle=bundle, target="tensorrt-rtx", precision=precision, **changes))  # type: ignore[arg-type]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def replace_graph(bundle: Path, name: str, model: onnx.ModelProto, **changes: object) -> None:
    """Put another graph in the place of an FP32 one and seal the bundle again."""
    manifest = msgspec.json.decode((bundle / MANIFEST_NAME).read_bytes(), type=BundleManifest)
    graphs = []
    for record in manifest.graphs:
        if (record.name, record.precision) == (name, "fp32"):
            onnx.save(model, bundle / record.file)
            record = msgspec.structs.replace(record, **changes)
        graphs.append(record)
    seal(bundle, msgspec.structs.replace(manifest, graphs=tuple(graphs)))


@pytest.mark.parametrize(
    ("precision", "encoder", "decoder"), [("fp32", "Float", "Float"), ("fp16", None, "Half"), ("int8", "Int8", "Half")]
)
def test_five_engines_with_sidecars_and_logs(bundle: Path, precision: str, encoder: str | None, decoder: str) -> None:
    steps: list[tuple[str, int, int]] = []
    request = BuildRequest(bundle=bundle, target="tensorrt-rtx", precision=precision)
    engines = build_engines(request, progress=lambda *step: steps.append(step))
    folder = bundle / "engines/tensorrt-rtx" / precision
    names = [
        "clip_image_encoder.64x64",
        "sam_image_encoder.64x64",
        "adab_decoder.64x64",
        "open_vocab_head",
        "text_encoder",
    ]
    assert [engine.plan for engine in engines] == [folder / f"{name}.plan" for name in names]
    assert files(folder) == {f"{name}{end}" for name in names for end in (".plan", ".plan.json", ".build.log")}
    opened = Bundle.open(bundle)  # the seal does not cover engines
    for engine in engines:
        sidecar = check_engine(engine.plan)
        record = opened.graph(sidecar.graph, sidecar.size, precision)
        assert sidecar == engine.sidecar
        assert sidecar.spec == record.spec
        assert sidecar.source == {record.file: opened.manifest.files[record.file].sha256}
        assert sidecar.settings.compute_capabilities == ("8.6", "8.9", "12.0")
        assert sidecar.memory.activation_bytes is not None
        assert 50 << 20 < (sidecar.memory.builder_peak_bytes or 0) < 4 << 30
        assert sidecar.layers
    by_graph = {engine.sidecar.graph: engine.sidecar for engine in engines}
    assert set(take_census(by_graph["adab_decoder"].layers).products_by_type) == {decoder}
    assert set(take_census(by_graph["open_vocab_head"].layers).products_by_type) == {"Float"}
    quantised = {graph: len(sidecar.quantised_nodes) for graph, sidecar in by_graph.items()}
    assert quantised == {
        graph: 4 if precision == "int8" and graph.endswith("image_encoder") else 0 for graph in quantised
    }
    if encoder:
        assert take_census(by_graph["sam_image_encoder"].layers).products_by_type == {encoder: 4}
    assert by_graph["open_vocab_head"].settings.profile["classes_and_background"] == DimensionRange(
        min=2, opt=151, max=1025
    )
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert steps[-1] == ("done", 500, 500)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_planted_fp32_graph_is_refused(bundle: Path, precision: str) -> None:
    with pytest.raises(
        ExportError, match=f"clip_image_encoder: promised {precision}, but 4 of 4 products are not: 4 F"
    ):
        build(bundle, precision, compute_capabilities=("8.9",))
    folder = bundle / "engines/tensorrt-rtx" / precision
    assert files(folder) == {"clip_image_encoder.64x64.build.log"}


def test_a_planted_fp32_decoder_in_fp16(bundle: Path) -> None:
    shutil.copy(bundle / "graphs/fp32/adab_decoder_64x64.onnx", bundle / "graphs/fp16/adab_decoder_64x64.onnx")
    seal(bundle, _manifest(bundle))
    with pytest.raises(ExportError, match="adab_decoder: promised fp16, but 1 of 1 products are not: 1 Float, first"):
        build(bundle)
    # What came before it stays, what was refused is not there, and excusing every node makes it no FP16 engine.
    folder = bundle / "engines/tensorrt-rtx/fp16"
    assert {name for name in files(folder) if name.endswith(".plan")} == {
        "clip_image_encoder.64x64.plan",
        "sam_image_encoder.64x64.plan",
    }
    with pytest.raises(ExportError, match=r"none of its \d+ layers gives Half"):
        build(bundle, keep_fp32=("*",), graphs=("adab_decoder",))


def _manifest(bundle: Path) -> BundleManifest:
    return msgspec.json.decode((bundle / MANIFEST_NAME).read_bytes(), type=BundleManifest)


def test_what_is_there_is_kept_until_something_changes(bundle: Path) -> None:
    graphs = ("sam_image_encoder", "text_encoder")

    def kept(**changes: object) -> list[bool]:
        return [engine.kept for engine in build(bundle, graphs=graphs, **changes)]

    assert kept() == [False, False]
    assert kept() == [True, True]
    assert kept(rebuild=True) == [False, False]
    assert kept(ranges={"prompts": DimensionRange(min=1, opt=2, max=3)}) == [True, False]
    assert kept(workspace_bytes=64 << 20) == [False, False]
    assert kept(compute_capabilities=("8.9",), workspace_bytes=64 << 20) == [False, False]
    plan = bundle / "engines/tensorrt-rtx/fp16/text_encoder.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    assert kept(compute_capabilities=("8.9",), workspace_bytes=64 << 20) == [True, False]
    (plan.parent / "sam_image_encoder.64x64.plan.json").unlink()
    assert kept(compute_capabilities=("8.9",), workspace_bytes=64 << 20) == [False, True]
    # Another graph of the same name in the bundle: the engine is not its engine.
    model = onnx.load(bundle / "graphs/fp16/sam_image_encoder_64x64.onnx")
    model.doc_string = "changed"
    onnx.save(model, bundle / "graphs/fp16/sam_image_encoder_64x64.onnx")
    seal(bundle, _manifest(bundle))
    assert kept(compute_capabilities=("8.9",), workspace_bytes=64 << 20) == [False, True]


def test_leftovers_of_a_killed_build_go(bundle: Path) -> None:
    folder = bundle / "engines/tensorrt-rtx/fp16"
    folder.mkdir(parents=True)
    machine = owner_mark().partition("-")[0]
    killed, alive, elsewhere, old = (
        f".text_encoder.plan.{mark}.partial"
        for mark in (f"{machine}-99999999-0", f"{machine}-1-0", "0badcafe-99999999-0", "0badcafe-1-0")
    )
    for name in (killed, alive, elsewhere, old):
        (folder / name).write_bytes(b"half")
    os.utime(folder / old, (time.time() - 2 * STALE_SECONDS,) * 2)
    build(bundle, graphs=("text_encoder",))
    assert {name for name in files(folder) if name.startswith(".")} == {alive, elsewhere}


def test_what_the_target_cannot_do_is_said_before_anything_is_built(bundle: Path) -> None:
    for precision, capability, said in (
        ("fp16", "8.7", r"8\.7 \(Orin\): tensorrt-rtx does not build for it"),
        ("fp8", "8.6", "fp8: compute capability 8.6"),
        ("fp32", "7.5", "no FP32 matrix product"),
        ("int4", "8.6", "no precision 'int4'; choose from fp32, fp16"),
    ):
        with pytest.raises((InputError, BundleError), match=said):
            build(bundle, precision, compute_capabilities=(capability,))
    assert not (bundle / "engines").exists()


def test_a_precision_the_bundle_has_not(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no precision 'fp16'; choose from fp32"):
        build(tiny_bundle)


def test_an_opset_that_tensorrt_gets_wrong(bundle: Path) -> None:
    manifest = _manifest(bundle)
    graphs = tuple(msgspec.structs.replace(record, opset=20) for record in manifest.graphs)
    seal(bundle, msgspec.structs.replace(manifest, graphs=graphs))
    with pytest.raises(InputError, match="opset 20 is too new"):
        build(bundle)


def test_a_zip_needs_an_output_folder(bundle: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", bundle))
    with pytest.raises(InputError, match="engines cannot go into a zip; give -o"):
        build(archive)
    (engine,) = build(archive, graphs=("text_encoder",), output=tmp_path / "out")
    assert engine.plan == tmp_path / "out/text_encoder.plan"


def test_too_little_memory_or_disk(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=100 << 20))
    with pytest.raises(ExportError, match=r"0\.1 GB of memory available, about 0\.6 GB needed; .*--no-preflight"):
        build(bundle)
    assert build(bundle, preflight=False, graphs=("text_encoder",))
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(ExportError, match=r"0\.00 GB free in .*, 0\.03 GB needed"):
        build(bundle, preflight=False, graphs=("sam_image_encoder",))


def test_too_little_memory_to_check_the_merged_graph_of_a_script(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=100 << 20))
    request = BuildRequest(bundle=bundle, target="tensorrt", merged=True)
    with pytest.raises(ExportError, match=r"engine merged 64x64: 0\.1 GB of memory available.*--no-preflight"):
        write_script(request, tmp_path / "device")
    assert not (tmp_path / "device").exists()
    write_script(dataclasses.replace(request, preflight=False), tmp_path / "device")
    write_script(dataclasses.replace(request, merged=False), tmp_path / "copies")  # nothing is run


def test_an_output_folder_that_is_a_file(bundle: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(InputError, match=f"output folder {taken}: File exists"):
        build(bundle, output=taken)
    assert taken.read_text() == "mine"


def test_tensorrt_itself_is_not_here(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match="target tensorrt: tensorrt is not installed; pip install tensorrt"):
        build_engines(BuildRequest(bundle=bundle, target="tensorrt"))


def graph_of(node: onnx.NodeProto, opset: int = 18) -> onnx.ModelProto:
    """A text encoder of one node."""
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT32, ["prompts", "tokens"])
    out = helper.make_tensor_value_info("prompt_embeddings", TensorProto.FLOAT, ["prompts", 16])
    graph = helper.make_graph([node], "g", [tokens], [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def test_a_graph_the_parser_refuses(bundle: Path) -> None:
    replace_graph(bundle, "text_encoder", graph_of(helper.make_node("NoSuchThing", ["tokens"], ["prompt_embeddings"])))
    with pytest.raises(ExportError, match=r"engine text_encoder: the parser refuses it: .*NoSuchThing"):
        build(bundle, "fp32", graphs=("text_encoder",))
    folder = bundle / "engines/tensorrt-rtx/fp32"
    assert files(folder) == {"text_encoder.build.log"}
    assert "NoSuchThing" in (folder / "text_encoder.build.log").read_text()


def test_a_graph_whose_border_is_not_the_manifests(bundle: Path) -> None:
    model = onnx.load(bundle / "graphs/fp32/sam_image_encoder_64x64.onnx")
    record = next(each for each in _manifest(bundle).graphs if each.name == "sam_image_encoder")
    for field, changed, said in (
        ("name", "sam", "its outputs are sam_feature_0.*the manifest says sam,"),
        ("dtype", "float16", "its output sam_feature_0 is FLOAT .*manifest says float16"),
        ("shape", (1, 8, 4, 5), r"its output sam_feature_0 is .*\(1, 8, 4, 4\).*\(1, 8, 4, 5\)"),
    ):
        outputs = (msgspec.structs.replace(record.spec.outputs[0], **{field: changed}), *record.spec.outputs[1:])
        replace_graph(bundle, "sam_image_encoder", model, spec=msgspec.structs.replace(record.spec, outputs=outputs))
        with pytest.raises(ExportError, match=said):
            build(bundle, "fp32", graphs=("sam_image_encoder",))


def test_a_profile_for_a_dynamic_batch(make_tiny_bundle: Callable[..., Path]) -> None:
    bundle = make_tiny_bundle(batch=4, dynamic_batch=True, sizes=TINY_SIZES[:1])
    lengths = DimensionRange(min=1, opt=2, max=3)
    engines = build(bundle, "fp32", ranges={"batch": lengths}, graphs=("adab_decoder", "open_vocab_head"))
    assert [engine.sidecar.settings.profile["batch"] for engine in engines] == [lengths, lengths]
    assert "--batch 1:2:3" in rebuild_command(engines[0].sidecar)
    with pytest.raises(InputError, match="exported for 1 to 4 pictures"):
        build(bundle, "fp32", ranges={"batch": DimensionRange(min=1, opt=1, max=8)})


def test_a_merged_engine_beside_the_text_encoder(bundle: Path) -> None:
    engines = build(bundle, "int8", merged=True)
    assert [engine.plan.name for engine in engines] == ["merged.64x64.plan", "text_encoder.plan"]
    folder = engines[0].plan.parent
    assert {name for name in files(folder) if name.startswith(".")} == set()
    sidecar = check_engine(engines[0].plan)
    assert [tensor.name for tensor in sidecar.spec.inputs] == ["image", "valid_size", "text_embeddings", "seen"]
    assert set(sidecar.source) == {
        f"graphs/int8/{name}"
        for name in (
            "clip_image_encoder_64x64.onnx",
            "sam_image_encoder_64x64.onnx",
            "adab_decoder_64x64.onnx",
            "open_vocab_head.onnx",
        )
    }
    assert set(take_census(sidecar.layers).products_by_type) == {"Int8", "Half", "Float"}
    assert len(sidecar.quantised_nodes) == 8
    assert "--merged" in rebuild_command(sidecar)
    assert [engine.kept for engine in build(bundle, "int8", merged=True)] == [True, True]
    with pytest.raises(InputError, match="--graph text_encoder: a merged engine has all graphs"):
        build(bundle, "int8", merged=True, graphs=("text_encoder",))


def test_a_merged_engine_with_one_planted_graph_is_refused(bundle: Path) -> None:
    shutil.copy(bundle / "graphs/fp32/adab_decoder_64x64.onnx", bundle / "graphs/fp16/adab_decoder_64x64.onnx")
    seal(bundle, _manifest(bundle))
    with pytest.raises(
        ExportError, match=r"engine merged: promised fp16, but 1 of \d+ products are not: 1 Float, first"
    ):
        build(bundle, merged=True)
    assert files(bundle / "engines/tensorrt-rtx/fp16") == {"merged.64x64.build.log"}


def test_an_int8_graph_that_lost_its_int8_products_is_refused(bundle: Path) -> None:
    """The very graph of the fp16 recipe under the int8 recipe's record."""
    manifest = _manifest(bundle)
    graphs = []
    for record in manifest.graphs:
        if (record.name, record.precision) == ("sam_image_encoder", "int8"):
            shutil.copy(bundle / "graphs/fp16/sam_image_encoder_64x64.onnx", bundle / record.file)
            record = msgspec.structs.replace(record, compute=ComputeRecord(base="fp16", quantised="int8"))
        graphs.append(record)
    seal(bundle, msgspec.structs.replace(manifest, graphs=tuple(graphs)))
    with pytest.raises(ExportError, match=r"sam_image_encoder: promised int8, but none of its \d+ products is Int8"):
        build(bundle, "int8", graphs=("sam_image_encoder",))


def test_what_a_graph_says_of_itself_is_what_counts(bundle: Path) -> None:
    """An FP32 graph under another recipe's name: refused by its label, accepted as what it says it is."""
    manifest = _manifest(bundle)
    kept = KeptRecord(pattern="*", precision="fp32", reason="a test", nodes=9)
    graphs = tuple(
        msgspec.structs.replace(record, compute=ComputeRecord(base="fp32", kept=(kept,)))
        if record.precision == "bf16"
        else record
        for record in manifest.graphs
    )
    seal(bundle, msgspec.structs.replace(manifest, graphs=graphs))
    (engine,) = build(bundle, "bf16", graphs=("adab_decoder",))
    assert engine.sidecar.compute == {"adab_decoder": ComputeRecord(base="fp32", kept=(kept,))}
    assert set(take_census(engine.sidecar.layers).products_by_type) == {"Float"}


@pytest.mark.slow
def test_the_five_graphs_of_a_real_model(tmp_path: Path) -> None:
    """Every kind of node EBSeg has, in small: 20 s. The census sees all its products."""
    from ebseg_deploy.contract import Size
    from ebseg_deploy.export.bundle_writer import ExportConfig, export_bundle
    from tiny_models import tiny_model

    config = ExportConfig(sizes=(Size(height=64, width=96),), threads=1)
    exported = export_bundle(tiny_model("tiny-b"), tmp_path / "b.ebseg", config, provenance={"weights": "seeded"})
    engines = build(exported.path, "fp32")
    counts = {engine.sidecar.graph: take_census(engine.sidecar.layers).products_by_type for engine in engines}
    assert all(set(count) == {"Float"} for count in counts.values())
    assert min(sum(count.values()) for count in counts.values()) >= 3


@pytest.mark.slow
def test_ebseg_b_at_its_own_size(seeded_b: object, tmp_path: Path) -> None:
    """Full size, FP32: minutes and 3 GB. Seconds and peak memory are printed (pytest -s)."""
    from ebseg_deploy.contract import Size
    from ebseg_deploy.export.bundle_writer import ExportConfig, export_bundle

    config = ExportConfig(sizes=(Size(height=640, width=640),))
    exported = export_bundle(seeded_b, tmp_path / "b.ebseg", config, provenance={"weights": "seeded"})  # type: ignore[arg-type]
    for engine in build(exported.path, "fp32"):
        sidecar = engine.sidecar
        weights = sum(exported.manifest.files[file].bytes for file in sidecar.source)
        peak = sidecar.memory.builder_peak_bytes or 0
        print(f"{sidecar.graph}: {sidecar.build_seconds:.1f} s, peak {peak / 1e9:.2f} GB, plan {sidecar.plan.bytes}")
        assert sidecar.plan.bytes >= 0.9 * weights
        assert peak <= build_module.PROCESS_BYTES + build_module.BYTES_PER_WEIGHT_BYTE * weights
