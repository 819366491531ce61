"""`ebseg quantize` for recipes without pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from ebseg_deploy.cli import ebseg
from ebseg_deploy.runtime.bundle import read_manifest
from tiny_bundles import add_references, seal, write_tiny_bundle


def quantize(*words: object) -> Result:
    return CliRunner().invoke(ebseg, ["quantize", *map(str, words)])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FP32 bundle with references; do not change it."""
    return add_references(write_tiny_bundle(tmp_path_factory.mktemp("source") / "tiny.ebseg"))


def test_fp16_and_what_can_be_done_with_it(source: Path, picture: Path, tmp_path: Path) -> None:
    made = tmp_path / "fp16.ebseg"
    answer = json.loads(quantize(source, "--recipe", "fp16", "-o", made, "--threads", 1, "--json").stdout)
    assert (answer["bundle"], answer["recipe"]) == (str(made), "fp16")
    assert {graph["compute"]["base"] for graph in answer["graphs"]} == {"fp16", "fp32"}
    for words in (
        ("verify", made),
        ("segment", made, picture, "--classes", "cat, dog", "-o", tmp_path / "labels"),
        ("compare", source, made, picture, "--classes", "cat, dog", "--fail-under", 90),
    ):
        outcome = CliRunner().invoke(ebseg, [*map(str, words)])
        assert outcome.exit_code == 0, outcome.output


def test_values_beyond_fp16_are_told(source: Path, tmp_path: Path) -> None:
    """A limit of 1e9 that nothing reaches, on a feature of SAM's."""
    loud = Path(shutil.copytree(source, tmp_path / "loud.ebseg"))
    graph = loud / "graphs" / "fp32" / "sam_image_encoder_64x64.onnx"
    model = onnx.load(graph)
    last = next(node for node in model.graph.node if "sam_feature_3" in node.output)
    last.output[0] = "feature"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1e9], np.float32), "limit"))
    model.graph.node.append(onnx.helper.make_node("Min", ["feature", "limit"], ["sam_feature_3"], name="limit/Min"))
    onnx.save(model, graph)
    seal(loud, read_manifest(loud))
    outcome = quantize(loud, "--recipe", "fp16", "-o", tmp_path / "made.ebseg", "--threads", 1, "--json")
    assert outcome.exit_code == 0, outcome.output
    assert (
        "graph sam_image_encoder 64x64: node limit/Min: 1 of constant limit's values are beyond FP16" in outcome.stderr
    )
    graphs = {(each["graph"], each["size"]): each["saturated"] for each in json.loads(outcome.stdout)["graphs"]}
    told = graphs.pop(("sam_image_encoder", "64x64"))
    assert told == [{"node": "limit/Min", "constant": "limit", "values": 1, "type": "fp16"}]
    assert not any(graphs.values())


def test_tables_name_what_is_kept(source: Path, tmp_path: Path) -> None:
    outcome = quantize(source, "--recipe", "bf16", "-o", tmp_path / "bf16.ebseg", "--keep", "*", "--threads", 1)
    assert outcome.exit_code == 0, outcome.output
    assert "asked for with --keep" in outcome.stdout
    assert "shares of 1e-8" in outcome.stdout


def test_inspect_shows_it(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.ebseg"
    assert quantize(source, "--recipe", "fp16", "--emulate", "-o", made, "--threads", 1).exit_code == 0
    text = CliRunner().invoke(ebseg, ["inspect", str(made)]).stdout
    assert "largest |Δ| to FP32" in text
    assert "fp16, emulated" in text
    assert "shares of 1e-8" in text
    assert "largest |Δ| to torch" in CliRunner().invoke(ebseg, ["inspect", str(source)]).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recipe", "fp12"), "recipe 'fp12': unknown; choose from fp16, bf16"),
        (("--recipe", "fp16", "--keep", "nothing/*"), "--keep nothing/*: no node of"),
    ],
)
def test_what_cannot_be_asked_for(words: tuple[str, ...], message: str, source: Path, tmp_path: Path) -> None:
    outcome = quantize(source, *words, "-o", tmp_path / "out.ebseg")
    assert outcome.exit_code == 1
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not (tmp_path / "out.ebseg").exists()
