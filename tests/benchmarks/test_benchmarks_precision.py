"""`bench precision`: bundles side by side, on the tiny bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from ebseg_deploy.benchmarks import precision as precision_module
from ebseg_deploy.benchmarks.labelled_sets import Example
from ebseg_deploy.benchmarks.precision import PrecisionConfig, PrecisionReport, measure_precisions
from ebseg_deploy.benchmarks.precision_table import GRAPH_COLUMNS, RECIPE_COLUMNS, graph_rows, markdown, recipe_rows
from ebseg_deploy.cli import ebseg
from ebseg_deploy.contract import GRAPH_NAMES, ReferenceRecord
from ebseg_deploy.errors import BundleError, InputError
from ebseg_deploy.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ebseg_deploy.runtime.bundle import Bundle, read_manifest
from ebseg_deploy.runtime.class_names import ClassEntry
from ebseg_deploy.runtime.segmenter import Segmenter
from safetensors.numpy import save_file
from tiny_bundles import TINY_SIZES, seal

CLASSES = 3


class Blocks:
    """Three pictures of coloured blocks with some truth."""

    name = "blocks"
    source = tuple(ClassEntry(name=name, seen=name != "red fox") for name in ("road", "red fox", "sky"))
    ignore: int | None = None
    background = ()
    near_classes = ()
    fingerprint = "blocks"

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.pictures = rng.integers(0, 256, (3, 2, 3, 3), np.uint8).repeat(20, 1).repeat(20, 2)
        self.truth = rng.integers(0, CLASSES, (3, 2, 3)).repeat(20, 1).repeat(20, 2)

    def __len__(self) -> int:
        return len(self.pictures)

    def example(self, index: int) -> Example:
        return Example(name=f"block {index}", picture=self.pictures[index], truth=self.truth[index])


def with_reference(folder: Path) -> Path:
    """Give a tiny bundle a reference picture, so that its graphs can be timed."""
    rng = np.random.default_rng(1)
    size, model = TINY_SIZES[0], read_manifest(folder, folder).model
    (folder / "references").mkdir()
    save_file(
        {
            "image": rng.integers(0, 256, (1, 3, size.height, size.width), np.uint8),
            "valid_size": np.array([[size.height, size.width]], np.int32),
            "text_embeddings": rng.normal(size=(CLASSES + 1, model.embedding_dim)).astype(np.float32),
            "seen": np.ones(CLASSES, np.float32),
            "tokens": rng.integers(1, 50, (2, 9), np.int32),
        },
        folder / "references" / "64x64.safetensors",
    )
    references = (ReferenceRecord(size=size, file="references/64x64.safetensors"),)
    return seal(folder, msgspec.structs.replace(read_manifest(folder, folder), references=references))


def made_of(source: Bundle, folder: Path) -> Bundle:
    """A bundle with the provenance that `ebseg quantize` writes."""
    manifest = read_manifest(folder, folder)
    provenance = {**manifest.provenance, "derived_from_seal": source.manifest.seal}
    return Bundle.open(seal(folder, msgspec.structs.replace(manifest, provenance=provenance)))


@pytest.fixture
def pair(make_tiny_bundle: Callable[..., Path]) -> list[Bundle]:
    """FP32, and the same graphs under another precision's name."""
    source = Bundle.open(with_reference(make_tiny_bundle("fp32.ebseg")))
    return [source, made_of(source, with_reference(make_tiny_bundle("int8.ebseg", precisions=("int8",))))]


@pytest.fixture
def report(pair: list[Bundle]) -> PrecisionReport:
    return measure_precisions(pair, PrecisionConfig(repeats=2, warmup=0, threads=1), Blocks())


def test_equal_graphs_agree_and_have_equal_figures(report: PrecisionReport) -> None:
    first, second = report.rows
    assert (first.precision, second.precision) == ("fp32", "int8")
    assert first.label_agreement is None
    assert second.label_agreement == 1.0
    assert first.miou == second.miou is not None
    assert [graph.graph for graph in second.graphs] == list(GRAPH_NAMES)
    assert [graph.bytes for graph in first.graphs] == [graph.bytes for graph in second.graphs]
    assert all(graph.latency_ratio is None for graph in first.graphs)
    for graph in second.graphs:
        assert graph.latency_ratio is not None
        assert graph.ratio_min <= graph.latency_ratio <= graph.ratio_max


def test_other_graphs_lose_labels(pair: list[Bundle], make_tiny_bundle: Callable[..., Path]) -> None:
    other = made_of(pair[0], make_tiny_bundle("other.ebseg", precisions=("int8",), seed=11))
    found = measure_precisions([pair[0], other], PrecisionConfig(repeats=0, threads=1), Blocks())
    agreement = found.rows[1].label_agreement
    assert agreement is not None
    assert agreement < 1


def test_a_ratio_above_one_is_faster(pair: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    """FP32 takes 3 s a run and the other 1 s, by a clock of the test's."""
    now = 0.0
    run = OnnxRuntimeBackend.run
    opened: dict[int, Path] = {}
    opening = OnnxRuntimeBackend.open

    def open_and_note(self: OnnxRuntimeBackend, file: Path, **words: object) -> object:
        graph = opening(self, file, **words)
        opened[id(graph)] = file
        return graph

    def run_and_wait(self: OnnxRuntimeBackend, graph: object, inputs: object) -> object:
        nonlocal now
        now += 3.0 if opened[id(graph)].is_relative_to(pair[0].path) else 1.0
        return run(self, graph, inputs)

    monkeypatch.setattr(OnnxRuntimeBackend, "open", open_and_note)
    monkeypatch.setattr(OnnxRuntimeBackend, "run", run_and_wait)
    monkeypatch.setattr(precision_module, "time", SimpleNamespace(perf_counter=lambda: now))
    found = measure_precisions(pair, PrecisionConfig(repeats=2, threads=1))
    assert [graph.latency_ratio for graph in found.rows[1].graphs] == [3.0] * len(GRAPH_NAMES)


def test_untrained_weights_have_no_miou(pair: list[Bundle]) -> None:
    found = measure_precisions(pair, PrecisionConfig(repeats=0, accuracy=False, threads=1), Blocks())
    assert [row.miou for row in found.rows] == [None, None]
    assert found.rows[1].label_agreement == 1.0
    assert found.rows[1].graphs[0].latency_ratio is None


def test_tables_have_a_cell_for_every_column(report: PrecisionReport) -> None:
    recipes, graphs = list(recipe_rows(report)), list(graph_rows(report))
    assert {len(row) for row in recipes} == {len(RECIPE_COLUMNS)}
    assert {len(row) for row in graphs} == {len(GRAPH_COLUMNS)}
    assert recipes[1][2] == "100.00"
    assert len(graphs) == len(GRAPH_NAMES)
    text = markdown(report)
    assert text.count("\n| int8 |") == 1 + len(GRAPH_NAMES)
    assert "3 pictures of blocks" in text


def test_the_first_bundle_has_to_be_fp32_and_the_others_of_its_model(
    pair: list[Bundle], make_tiny_bundle: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match="int8, wanted FP32 first"):
        measure_precisions(pair[::-1], PrecisionConfig())
    model = msgspec.structs.replace(pair[0].model, name="another")
    other = Bundle.open(make_tiny_bundle("c.ebseg", model=model, precisions=("int8",)))
    with pytest.raises(InputError, match="another 64x64, not ebseg-tiny"):
        measure_precisions([pair[0], other], PrecisionConfig())


def test_bundles_of_other_weights_are_refused(pair: list[Bundle], make_tiny_bundle: Callable[..., Path]) -> None:
    other = Bundle.open(make_tiny_bundle("weights.ebseg", seed=11))
    theirs = made_of(other, make_tiny_bundle("theirs.ebseg", precisions=("int8",), seed=11))
    before, wanted = (each.manifest.seal[:12] for each in (other, pair[0]))
    with pytest.raises(InputError, match=rf"theirs.*made of the bundle sealed {before}…, not of .*sealed {wanted}…"):
        measure_precisions([*pair, theirs], PrecisionConfig())
    with pytest.raises(InputError, match=r"made of nothing that it tells.*; make it of this bundle"):
        measure_precisions([pair[0], other], PrecisionConfig())


def three(pair: list[Bundle], make_tiny_bundle: Callable[..., Path]) -> list[Bundle]:
    return [*pair, made_of(pair[0], make_tiny_bundle("fp16.ebseg", precisions=("fp16",)))]


@pytest.mark.parametrize("accuracy", [True, False], ids=["trained", "untrained"])
def test_fp32_segments_a_picture_once(
    pair: list[Bundle],
    make_tiny_bundle: Callable[..., Path],
    segmented: list[Path],
    accuracy: bool,
) -> None:
    bundles = three(pair, make_tiny_bundle)
    found = measure_precisions(bundles, PrecisionConfig(repeats=0, threads=1, accuracy=accuracy), Blocks())
    assert [segmented.count(each.path) for each in bundles] == [3, 3, 3]
    assert [row.label_agreement for row in found.rows] == [None, 1.0, 1.0]


def test_a_broken_off_run_measures_no_bundle_again(
    pair: list[Bundle], make_tiny_bundle: Callable[..., Path], segmented: list[Path], tmp_path: Path
) -> None:
    bundles = three(pair, make_tiny_bundle)
    config = PrecisionConfig(repeats=0, threads=1)
    state = tmp_path / "state"
    state.mkdir()

    def stop(what: str, done: int, total: int) -> None:
        if what == "accuracy of fp16":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_precisions(bundles, config, Blocks(), state=state, progress=stop)
    segmented.clear()
    found = measure_precisions(bundles, config, Blocks(), state=state)
    assert [segmented.count(each.path) for each in bundles] == [3, 0, 3]  # FP32's label maps are needed once more
    assert found.rows == measure_precisions(bundles, config, Blocks()).rows
    assert list(state.iterdir()) == []


@pytest.fixture
def segmented(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The bundle of every picture that is segmented."""
    done: list[Path] = []
    call = Segmenter.__call__

    def call_and_note(self: Segmenter, *words: object, **more: object) -> object:
        done.append(self.bundle.path)
        return call(self, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Segmenter, "__call__", call_and_note)
    return done


def test_without_a_reference_nothing_is_timed(make_tiny_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.open(make_tiny_bundle("d.ebseg"))
    with pytest.raises(BundleError, match="no reference picture"):
        measure_precisions([bundle], PrecisionConfig(repeats=1))


def test_command_line(pair: list[Bundle], tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = ["bench", "precision", *(str(bundle.source) for bundle in pair)]
    outcome = CliRunner().invoke(ebseg, [*words, "--scenes", "0", "--repeats", "1", "-o", str(output), "--json"])
    assert outcome.exit_code == 0, outcome.output
    content = json.loads(outcome.stdout)
    assert content == json.loads((output / "precision.json").read_text())
    assert [row["precision"] for row in content["rows"]] == ["fp32", "int8"]
    assert (output / "precision.md").read_text().startswith("ebseg-tiny, canvas 64x64")
