"""The latency benchmark: what it runs, how often, and that its numbers are the clock's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from ebseg_deploy.benchmarks.latency import (
    LatencyConfig,
    measure_latency,
    synthetic_picture,
    synthetic_vocabulary,
)
from ebseg_deploy.benchmarks.memory import peak_rss_bytes, reset_peak_rss
from ebseg_deploy.benchmarks.statistics import LatencySummary
from ebseg_deploy.benchmarks.timed_backend import TimedBackend
from ebseg_deploy.cli import ebseg
from ebseg_deploy.contract import GRAPH_NAMES, OPEN_VOCAB_HEAD, TEXT_ENCODER, Size
from ebseg_deploy.errors import BundleError, InputError, VocabularyError
from ebseg_deploy.runtime.backends import OpenGraph, open_backend
from ebseg_deploy.runtime.backends.fake import FakeBackend
from ebseg_deploy.runtime.bundle import Bundle

BRIEF = LatencyConfig(repeats=4, warmup=1, threads=1, classes_count=7)


def test_every_graph_and_the_whole_way_are_measured(tiny_bundle: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = measure_latency(Bundle.open(tiny_bundle), BRIEF, progress=lambda *done: calls.append(done))
    assert list(report.graphs) == list(GRAPH_NAMES)
    for name, graph in report.graphs.items():
        assert graph.alone.runs == 4
        assert (graph.pipeline is None) == (name == TEXT_ENCODER)
        if graph.pipeline is not None:
            assert graph.pipeline.runs == 4, "the warm-up does not count"
            assert graph.pipeline.p50_ms < report.end_to_end.max_ms
    assert (report.end_to_end.runs, report.label_map.runs) == (4, 4)
    assert (report.classes, report.canvas, report.picture) == (7, "64x64", (64, 64))
    assert report.vocabulary == "synthetic"
    assert calls[-1] == (5 * 7, 5 * 7)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    json.dumps(report.as_dict(), allow_nan=False)


def test_a_slow_graph_shows_where_it_is_slow(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = TimedBackend._run_resident_impl

    def slow_head(self: TimedBackend, graph: OpenGraph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        run = self.inner.run_resident

        def sleepy(session: object, given: object) -> dict[str, np.ndarray]:
            time.sleep(0.03)
            return run(session, given)

        if graph.name == OPEN_VOCAB_HEAD:
            monkeypatch.setattr(self.inner, "run_resident", sleepy)
        try:
            return real(self, graph, inputs)
        finally:
            monkeypatch.setattr(self.inner, "run_resident", run)

    monkeypatch.setattr(TimedBackend, "_run_resident_impl", slow_head)
    report = measure_latency(Bundle.open(tiny_bundle), BRIEF)
    head = report.graphs[OPEN_VOCAB_HEAD]
    assert head.pipeline is not None
    assert head.pipeline.min_ms >= 30
    assert report.end_to_end.min_ms >= 30


def test_given_picture_vocabulary_and_canvas_are_used(
    tiny_bundle: Path, picture_pixels: np.ndarray, make_tiny_bundle: Callable[..., Path]
) -> None:
    bundle = Bundle.open(tiny_bundle)
    words = synthetic_vocabulary(bundle, 3)
    report = measure_latency(bundle, BRIEF, picture=picture_pixels, vocabulary=words, vocabulary_name="mine")
    assert (report.canvas, report.picture, report.classes) == ("64x96", (60, 90), 3)
    assert report.vocabulary == "mine"
    square = LatencyConfig(repeats=1, warmup=0, size=Size(height=64, width=64))
    assert measure_latency(bundle, square, picture=picture_pixels).canvas == "64x64"
    with pytest.raises(BundleError, match="no canvas 96x96"):
        measure_latency(bundle, LatencyConfig(size=Size(height=96, width=96)))
    with pytest.raises(VocabularyError, match="text encoder"):
        measure_latency(Bundle.open(make_tiny_bundle(seed=1)), BRIEF, vocabulary=words)


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1}, {"classes_count": 0}])
def test_config_refuses_what_cannot_be_measured(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=name) as caught:
        LatencyConfig(**wrong)
    assert f"--{name.replace('_', '-')}" in str(caught.value.cure)


def test_percentiles_by_hand() -> None:
    summary = LatencySummary.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (summary.runs, summary.mean_ms, summary.min_ms, summary.max_ms, summary.p50_ms) == (5, 3, 1, 5, 3)
    assert summary.p90_ms == pytest.approx(4.6)
    assert summary.p99_ms == pytest.approx(4.96)
    with pytest.raises(InputError, match="no latency"):
        LatencySummary.of([])


def test_synthetic_parts_are_the_seeds_and_valid(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    size = Size(height=64, width=96)
    first, again, other = (synthetic_picture(size, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (64, 96, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9
    words = synthetic_vocabulary(bundle, 9)
    words.check_encoder(bundle.manifest.text.encoder_sha256, model="")
    np.testing.assert_allclose(np.linalg.norm(words.embeddings, axis=1), 1, atol=1e-6)


def test_timed_backend_answers_as_the_one_inside(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    record = bundle.graph(OPEN_VOCAB_HEAD)
    random = np.random.default_rng(0)
    shapes = [[3 if each == "classes_and_background" else 2 if each == "classes" else each for each in t.shape]
              for t in record.spec.inputs]  # fmt: skip
    inputs = {
        tensor.name: random.normal(size=shape).astype(np.float32)
        for tensor, shape in zip(record.spec.inputs, shapes, strict=True)
    }
    plain, inner = open_backend("onnxruntime"), open_backend("onnxruntime")
    with plain, TimedBackend(inner) as timed:
        timed.keep_inputs = True
        given = [
            backend.run(backend.open(bundle.file(record.file), spec=record.spec, name="head"), inputs)
            for backend in (plain, timed)
        ]
        np.testing.assert_array_equal(given[0]["class_probabilities"], given[1]["class_probabilities"])
        assert len(timed.latencies_ms["head"]) == 1
        assert timed.kept_inputs["head"].keys() == inputs.keys()
    assert "0 graphs open" in repr(inner), "closing reaches the backend inside"


def test_timed_backend_keeps_nothing_unless_told(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    record = bundle.graph(TEXT_ENCODER)
    with TimedBackend(FakeBackend()) as timed:
        graph = timed.open(bundle.file(record.file), spec=record.spec)
        timed.run(graph, {"tokens": np.zeros((2, 77), np.int32)})
        assert timed.kept_inputs == {}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_peak_memory_sees_what_was_freed_and_forgets_on_reset() -> None:
    code = (
        "import numpy as np\n"
        "from ebseg_deploy.benchmarks.memory import peak_rss_bytes, reset_peak_rss\n"
        "start = peak_rss_bytes()[0]\n"
        "block = np.ones(64 << 20, np.uint8)\n"
        "del block\n"
        "high = peak_rss_bytes()[0]\n"
        "reset = reset_peak_rss()\n"
        "print(high - start, peak_rss_bytes()[0] - start, reset)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    grown, left, reset = done.stdout.split()
    assert 60 << 20 < int(grown) < 80 << 20
    if reset == "True":
        assert int(left) < 8 << 20
    assert reset_peak_rss() in (True, False)
    assert peak_rss_bytes()[0] > 1 << 20


def test_command_prints_a_table_and_json(tiny_bundle: Path, picture: Path) -> None:
    words = ["bench", "latency", str(tiny_bundle), "--repeats", "2", "--warmup", "0"]
    outcome = CliRunner().invoke(ebseg, [*words, "--threads", "1"])
    assert outcome.exit_code == 0, outcome.output
    for needle in ("150 classes (synthetic)", "1 threads", "peak RSS", "picture to label map", *GRAPH_NAMES):
        assert needle in outcome.stdout
    given = ["--image", str(picture), "--classes", "cat, dog", "--size", "64x64", "--json"]
    outcome = CliRunner().invoke(ebseg, [*words, *given])
    answer = json.loads(outcome.stdout)
    assert (answer["classes"], answer["canvas"], answer["picture"]) == (2, "64x64", [60, 90])
    assert answer["peak_rss_bytes"] > 0
    assert {"p50_ms", "p90_ms", "p99_ms"} <= answer["graphs"]["adab_decoder"]["alone"].keys()
    assert answer["machine"]["packages"]["numpy"] == np.__version__
