"""`ebseg inspect` of the three kinds of file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import onnx
import pytest
from click.testing import CliRunner
from ebseg_deploy.cli import ebseg
from ebseg_deploy.cli.tables import bytes_text, print_table
from ebseg_deploy.contract import MANIFEST_NAME


def inspect(*words: object) -> str:
    outcome = CliRunner().invoke(ebseg, ["inspect", *map(str, words)])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stderr == ""
    return outcome.stdout


def test_a_bundles_json_is_its_manifest_and_more(tiny_bundle: Path) -> None:
    answer = json.loads(inspect(tiny_bundle, "--json"))
    manifest = msgspec.json.decode((tiny_bundle / MANIFEST_NAME).read_bytes())
    assert {key: answer[key] for key in manifest} == manifest
    assert (answer["kind"], answer["path"]) == ("bundle", str(tiny_bundle))
    assert answer["bytes"] == sum(
        path.stat().st_size for path in tiny_bundle.rglob("*") if path.is_file() and path.name != MANIFEST_NAME
    )


def test_a_bundles_tables_show_graphs_tensors_and_provenance(tiny_bundle: Path) -> None:
    text = inspect(tiny_bundle)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "model ebseg-tiny" in lines
    assert "canvases 64x64, 64x96" in lines
    assert "α, β, γ 0.1, 0.3, 0.6" in lines
    assert "checkpoint tiny weights, seed 3" in lines
    assert "clip_image_encoder in valid_size int32 1 × 2" in lines
    assert "open_vocab_head out class_probabilities float32 1 × 8 × classes" in lines
    (decoder,) = [line for line in lines if line.startswith("adab_decoder fp32 64x96")]
    assert decoder.endswith("1.0e-06 (mask_logits)")
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_a_zip_shows_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", tiny_bundle)
    of_zip, of_folder = json.loads(inspect(archive, "--json")), json.loads(inspect(tiny_bundle, "--json"))
    assert of_zip.pop("path") == archive
    del of_folder["path"]
    assert of_zip == of_folder


def test_a_vocabulary(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "words.safetensors"
    words = ["vocab", "build", str(tiny_bundle), "--classes", "cat, gryphon", "-o", str(path)]
    assert CliRunner().invoke(ebseg, words).exit_code == 0
    answer = json.loads(inspect(path, "--json"))
    assert [(each["name"], each["seen"]) for each in answer["classes"]] == [("cat", True), ("gryphon", False)]
    assert (answer["kind"], answer["model"], answer["embedding_dim"]) == ("vocabulary", "ebseg-tiny", 16)
    text = inspect(path)
    assert "2, of them seen in training 1" in text
    assert [line.split()[:2] for line in text.splitlines() if "gryphon" in line] == [["1", "gryphon"]]


def test_a_graph(tiny_bundle: Path) -> None:
    path = tiny_bundle / "graphs/fp32/open_vocab_head.onnx"
    answer = json.loads(inspect(path, "--json"))
    graph = onnx.load(path).graph
    assert answer["opset"] == 18
    assert answer["nodes"] == len(graph.node) == sum(answer["operators"].values())
    assert answer["inputs"][-1] == {"name": "seen", "dtype": "float", "shape": ["classes"]}
    assert answer["outputs"] == [{"name": "class_probabilities", "dtype": "float", "shape": [1, 8, "classes"]}]
    assert answer["weight_values"]["float"] == 1
    assert "class_probabilities" in inspect(path)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 << 20, "20 MiB"), (5 << 30, "5.0 GiB")]
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert bytes_text(count) == text


def test_what_looks_like_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("[bold]title", ("[red]column", "n"), [("[/]cell", "1.5 %"), ("x", "-")])
    text = capsys.readouterr().out
    assert "[bold]title" in text
    assert "[red]column" in text
    assert "[/]cell" in text
