"""From a bundle and pictures to a quantised bundle, and the gate that a wrong scale does not pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import onnx
import pytest
from click.testing import CliRunner, Result
from ebseg_deploy.calibration.calibrate import CalibrationConfig, calibrate
from ebseg_deploy.calibration.feeds import graph_hash
from ebseg_deploy.calibration.quantize_bundle import (
    QuantiseConfig,
    QuantisedBundle,
    quantise_bundle,
    tensors_to_observe,
)
from ebseg_deploy.calibration.ranges import CALIBRATION_NAME, Range, Ranges, read_ranges
from ebseg_deploy.calibration.survey import SurveyedPictures
from ebseg_deploy.cli import ebseg
from ebseg_deploy.contract import ADAB_DECODER, CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER, Size
from ebseg_deploy.errors import BundleError, CalibrationError, InputError, ParityError
from ebseg_deploy.export.precision.derive import DeriveConfig
from ebseg_deploy.export.precision.recipes import RECIPES, recipe_named
from ebseg_deploy.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.verify import verify_bundle

SIZE = Size(height=64, width=64)
CONFIG = QuantiseConfig(derive=DeriveConfig(threads=1))


@pytest.fixture(scope="module")
def ranges(tiny_nano: Bundle, surveyed_patchwork: SurveyedPictures) -> Ranges:
    config = CalibrationConfig(
        graphs=(CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER), tensors=tensors_to_observe(recipe_named("int8")), threads=1
    )
    return calibrate(tiny_nano, surveyed_patchwork, config)


@pytest.fixture(scope="module")
def int8(tiny_nano: Bundle, ranges: Ranges, tmp_path_factory: pytest.TempPathFactory) -> QuantisedBundle:
    output = tmp_path_factory.mktemp("int8") / "tiny-int8.ebseg"
    return quantise_bundle(tiny_nano, output, recipe_named("int8"), CONFIG, ranges=ranges)


def corrupted(ranges: Ranges, tensor: str, factor: float) -> Ranges:
    """One range off by a factor, in whichever graph has it."""

    def changed(each: dict[str, Range]) -> dict[str, Range]:
        if tensor not in each:
            return each
        amax = each[tensor].amax * factor
        return {**each, tensor: Range(low=-amax, high=amax)}

    graphs = tuple(msgspec.structs.replace(graph, ranges=changed(dict(graph.ranges))) for graph in ranges.graphs)
    assert graphs != ranges.graphs
    return msgspec.structs.replace(ranges, graphs=graphs)


def an_activation(tiny_nano: Bundle, graph: str) -> str:
    """One that enters a product of the first block."""
    model = onnx.load(tiny_nano.file(tiny_nano.graph(graph, SIZE, "fp32").file), load_external_data=False)
    product = "layers.0.attn.qkv/MatMul" if graph == CLIP_IMAGE_ENCODER else "backbone.blocks.0.mlp.lin2/MatMul"
    return next(node.input[0] for node in model.graph.node if node.name == product)


def test_quantised_bundle_verifies_and_is_smaller(tiny_nano: Bundle, int8: QuantisedBundle) -> None:
    with OnnxRuntimeBackend(threads=1) as backend:
        assert all(output.passed for output in verify_bundle(Bundle.open(int8.bundle.source), backend))
    assert int8.encoder_share > 0.6  # the patch convolution is a third of so small a model
    assert min(value for found in int8.cosines for value in found.outputs.values()) > 0.99
    for name in (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER):
        record = int8.bundle.graph(name, SIZE, "int8")
        assert record.compute is not None
        assert (record.compute.base, record.compute.quantised, record.opset) == ("fp16", "int8", 19)
        done = int8.quantisations[name, SIZE]
        assert record.compute.macs_share == pytest.approx(done.share, abs=1e-4)
        before = tiny_nano.graph(name, SIZE, "fp32")
        assert record.weights is not None
        assert before.weights is not None
        files = int8.bundle.manifest.files[record.weights], tiny_nano.manifest.files[before.weights]
        assert files[0].bytes < 0.6 * files[1].bytes
    decoder = int8.bundle.graph(ADAB_DECODER, SIZE, "int8")
    assert decoder.compute is not None
    assert decoder.compute.macs_share is None


@pytest.mark.parametrize("graph", [CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER])
@pytest.mark.parametrize("factor", [1 / 32, 32.0])
def test_gate_stops_a_corrupted_scale(
    tiny_nano: Bundle, ranges: Ranges, tmp_path: Path, graph: str, factor: float
) -> None:
    wrong = corrupted(ranges, an_activation(tiny_nano, graph), factor)
    with pytest.raises(ParityError, match=rf"graph {graph}: \w+: (cosine 0\.\d+|relative deviation)"):
        quantise_bundle(tiny_nano, tmp_path / "bad.ebseg", recipe_named("int8"), CONFIG, ranges=wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("fp16", "bf16", "int8")])
def test_every_recipe_makes_a_bundle_that_verifies(
    tiny_nano: Bundle, surveyed_patchwork: SurveyedPictures, tmp_path: Path, name: str
) -> None:
    recipe = recipe_named(name)
    needed = surveyed_patchwork if recipe.needs_pictures else None
    made = quantise_bundle(tiny_nano, tmp_path / "out.ebseg", recipe, CONFIG, pictures=needed)
    with OnnxRuntimeBackend(threads=1) as backend:
        assert all(output.passed for output in verify_bundle(made.bundle, backend))
    assert made.bundle.precisions == (name,)
    record = made.bundle.graph(CLIP_IMAGE_ENCODER, SIZE, name)
    assert record.compute is not None
    assert record.compute.dynamic == (name == "int8-cpu")
    if name == "int8-all":  # the decoder is calibrated behind the encoders as they were quantised
        assert made.ranges is not None
        assert made.ranges.graphs[-1].fed_by == {
            encoder: graph_hash(made.bundle.file(made.bundle.graph(encoder, SIZE, name).file))
            for encoder in (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER)
        }


def test_each_fp32_graph_runs_once(
    tiny_nano: Bundle, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the cosines and for the derived graph's deviation."""
    opened: list[Path] = []
    opening = OnnxRuntimeBackend.open

    def open_and_note(self: OnnxRuntimeBackend, file: Path, **words: object) -> object:
        opened.append(file)
        return opening(self, file, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(OnnxRuntimeBackend, "open", open_and_note)
    quantise_bundle(tiny_nano, tmp_path / "q.ebseg", recipe_named("int8"), CONFIG, ranges=ranges)
    source = [file for file in opened if file.is_relative_to(tiny_nano.path)]
    assert sorted(source) == sorted(tiny_nano.file(record.file) for record in tiny_nano.manifest.graphs)


def test_output_and_references_are_looked_at_before_the_pictures(
    tiny_nano: Bundle,
    int8: QuantisedBundle,
    surveyed_patchwork: SurveyedPictures,
    make_tiny_bundle: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ebseg_deploy.calibration import quantize_bundle

    monkeypatch.setattr(quantize_bundle, "calibrate", lambda *words, **more: pytest.fail("calibrated first"))
    recipe = recipe_named("int8")
    with pytest.raises(InputError, match="exists; give --overwrite"):
        quantise_bundle(tiny_nano, int8.bundle.path, recipe, CONFIG, pictures=surveyed_patchwork)
    bare = Bundle.open(make_tiny_bundle("bare.ebseg"))
    with pytest.raises(BundleError, match="no references"):
        quantise_bundle(bare, tmp_path / "q.ebseg", recipe, CONFIG, pictures=surveyed_patchwork)


def test_ranges_of_another_bundle_are_refused(tiny_nano: Bundle, ranges: Ranges, tmp_path: Path) -> None:
    others = tuple(msgspec.structs.replace(graph, sha256="0" * 64) for graph in ranges.graphs)
    with pytest.raises(CalibrationError, match=r"measured on another graph.*--images"):
        quantise_bundle(
            tiny_nano,
            tmp_path / "o",
            recipe_named("int8"),
            CONFIG,
            ranges=msgspec.structs.replace(ranges, graphs=others),
        )


def test_ranges_that_lack_a_graph_are_refused_before_the_work(
    tiny_nano: Bundle, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ebseg_deploy.calibration import quantize_bundle

    monkeypatch.setattr(quantize_bundle, "insert_qdq", lambda *words, **more: pytest.fail("quantised an encoder"))
    refusal = f"ranges: none of graph adab_decoder for canvas {SIZE}; give --images besides --ranges"
    with pytest.raises(CalibrationError, match=refusal):
        quantise_bundle(tiny_nano, tmp_path / "q.ebseg", recipe_named("int8-all"), CONFIG, ranges=ranges)


def test_pictures_of_both_calibrations_are_remembered(
    tiny_nano: Bundle, surveyed_patchwork: SurveyedPictures, ranges: Ranges, tmp_path: Path
) -> None:
    """Ranges of the encoders are given, the decoder's are measured on fewer pictures: accuracy warns of all."""
    each = surveyed_patchwork
    few = replace(each, places=each.places[:2], records=each.records[:2], facts=each.facts[:2])
    given = msgspec.structs.replace(ranges, pictures=each.records[1:])
    made = quantise_bundle(
        tiny_nano, tmp_path / "all.ebseg", recipe_named("int8-all"), CONFIG, pictures=few, ranges=given
    )
    kept = read_ranges(made.bundle.file(CALIBRATION_NAME))
    assert sorted(record.sha256 for record in kept.pictures) == sorted(record.sha256 for record in each.records)


def test_a_quantised_bundle_is_refused(
    int8: QuantisedBundle, surveyed_patchwork: SurveyedPictures, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="its graphs are int8 already; give the FP32 bundle"):
        quantise_bundle(int8.bundle, tmp_path / "o", recipe_named("int8"), CONFIG, pictures=surveyed_patchwork)


def run(*words: object) -> Result:
    return CliRunner().invoke(ebseg, [str(word) for word in words])


def test_command_line(tiny_nano: Bundle, patchwork: Path, tmp_path: Path) -> None:
    output, saved = tmp_path / "q.ebseg", tmp_path / "ranges.json"
    words = ("quantize", tiny_nano.source, "--recipe", "int8", "-o", output, "--threads", 1, "--json")
    outcome = run(*words, "--images", patchwork, "--save-ranges", saved)
    assert outcome.exit_code == 0, outcome.output
    content = json.loads(outcome.stdout)
    assert content["encoder_macs_share"] > 0.6
    assert content["bytes"] < content["bytes_before"]
    clip = next(graph for graph in content["graphs"] if graph["graph"] == CLIP_IMAGE_ENCODER)
    assert min(clip["quantised"]["cosine"].values()) > 0.99
    assert {"node": "trunk.conv1/Conv"}.items() <= clip["quantised"]["kept"][0].items()
    # The ranges that were used make the same bundle again, without pictures.
    again = run(*words, "--overwrite", "--ranges", saved)
    assert again.exit_code == 0, again.output
    assert [graph["quantised"] for graph in json.loads(again.stdout)["graphs"]] == [
        graph["quantised"] for graph in content["graphs"]
    ]
    assert read_ranges(saved).model == "tiny-nano"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--recipe", "int8"), "recipe int8: needs pictures; give --images DIR, or --ranges FILE"),
        (("--recipe", "int4", "--images", "{photos}"), "recipe 'int4': unknown; choose from fp16"),
        (("--recipe", "int8", "--images", "nowhere"), "no such folder"),
        (("--recipe", "int8", "--images", "{photos}", "--keep", "nothing/*"), "--keep nothing/*: no node"),
        (("--recipe", "int8", "--ranges", "{damaged}"), "make it again with `ebseg calibrate`"),
        (("--recipe", "int8", "--images", "{photos}", "--observer", "best"), "observer 'best': unknown"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tiny_nano: Bundle, patchwork: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    damaged = tmp_path / "ranges.json"
    damaged.write_text("{}")
    output = tmp_path / "out.ebseg"
    outcome = run(
        "quantize", tiny_nano.source, "-o", output, *(w.format(photos=patchwork, damaged=damaged) for w in words)
    )
    assert outcome.exit_code == 1, outcome.output
    assert said in outcome.stderr
    assert outcome.stderr.splitlines()[-1].startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranges.json"]


def test_an_interrupted_run_leaves_nothing(
    tiny_nano: Bundle, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ebseg_deploy.calibration import quantize_bundle

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize_bundle, "check_cosines", stop)
    with pytest.raises(KeyboardInterrupt):
        quantise_bundle(tiny_nano, tmp_path / "q.ebseg", recipe_named("int8"), CONFIG, ranges=ranges)
    assert list(tmp_path.iterdir()) == []
