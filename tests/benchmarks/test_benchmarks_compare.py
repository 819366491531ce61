"""The comparison with eager PyTorch, on a tiny bundle and in two processes; and what a side answers when it fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from ebseg_deploy.benchmarks import compare
from ebseg_deploy.benchmarks.compare import CompareConfig, _serve, compare_with_eager
from ebseg_deploy.cli import ebseg
from ebseg_deploy.contract import Size
from ebseg_deploy.errors import EbsegError, InputError

CONFIG, SIZE = CompareConfig(bundle=Path("b.ebseg")), Size(height=64, width=64)


def eager_side_of_tiny(config: CompareConfig, size: Size) -> Callable[[], Any]:
    """The eager side, for a process of its own: there the tiny variants have to be made known first."""
    from ebseg_deploy.model import config as variants
    from ebseg_deploy.model import seeded
    from tiny_models import TINY, tiny_model

    variants.VARIANTS.update(TINY)
    seeded.seeded_model = lambda variant: tiny_model(variant.name)
    return compare._eager_side(config, size)


@pytest.fixture
def tiny_nano(make_tiny_bundle: Callable[..., Path]) -> Path:
    """A bundle whose graphs are not tiny-nano's, but have its name and width: the two sides run, and differ."""
    from tiny_bundles import TINY_MODEL

    return make_tiny_bundle(model=msgspec.structs.replace(TINY_MODEL, name="tiny-nano"), sizes=(SIZE,))


def test_two_processes_in_turn_and_every_figure_is_there(tiny_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_eager_side", eager_side_of_tiny)
    calls: list[tuple[int, int]] = []
    config = CompareConfig(bundle=tiny_nano, classes_count=7, repeats=2, warmup=1, threads=1, backend="onnxruntime")
    report = compare_with_eager(config, progress=lambda done, total: calls.append((done, total)))
    assert (report.model, report.precision, report.canvas, report.classes) == ("tiny-nano", "fp32", "64x64", 7)
    assert (report.eager.runs, report.bundle.runs, report.threads) == (2, 2, 1)
    assert calls == [(done, 6) for done in range(1, 7)], "three pairs, one of them to warm up"
    assert 0 < report.ratio_min <= report.ratio <= report.ratio_max
    # Of two pairs: the median lies between, and each ratio between those of the extremes.
    assert report.ratio == pytest.approx((report.ratio_min + report.ratio_max) / 2)
    assert report.ratio_max <= report.eager.max_ms / report.bundle.min_ms
    assert report.ratio_min >= report.eager.min_ms / report.bundle.max_ms
    # PyTorch is in the one process and not in the other.
    assert report.eager_peak_rss_bytes > report.bundle_peak_rss_bytes + (50 << 20)
    assert report.label_agreement is None, "the weights differ"
    assert json.loads(json.dumps(report.as_dict()))["ratio"] == report.ratio


@pytest.mark.slow
def test_an_exported_bundle_gives_the_labels_of_eager_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ebseg_deploy.export.bundle_writer import ExportConfig, export_bundle
    from tiny_models import tiny_model

    config = ExportConfig(sizes=(SIZE,), threads=1)
    bundle = export_bundle(tiny_model("tiny-nano"), tmp_path / "b.ebseg", config, provenance={"weights": "seeded"})
    monkeypatch.setattr(compare, "_eager_side", eager_side_of_tiny)
    report = compare_with_eager(CompareConfig(bundle=bundle.path, classes_count=7, repeats=1, warmup=0, threads=1))
    assert report.label_agreement is not None
    assert report.label_agreement >= 0.999


@pytest.mark.parametrize(("weights", "compared"), [("seeded", True), ("nano.safetensors", False)])
def test_agreement_only_where_the_weights_are_the_same(tiny_nano: Path, weights: str, compared: bool) -> None:
    from ebseg_deploy.runtime.bundle import Bundle

    bundle = Bundle.open(tiny_nano)
    manifest = msgspec.structs.replace(bundle.manifest, provenance={"weights": weights})
    labels = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 2])
    found = compare._agreement(Bundle(bundle.path, manifest), CompareConfig(bundle=tiny_nano), *labels)
    assert found == (0.75 if compared else None)


def test_no_such_canvas(tiny_nano: Path) -> None:
    outcome = CliRunner().invoke(ebseg, ["bench", "compare", str(tiny_nano), "--size", "96x96"])
    assert outcome.exit_code == 1
    assert "has no canvas 96x96; see `ebseg inspect`" in outcome.stderr


def test_a_side_that_cannot_load_is_an_error_of_ours(tiny_nano: Path) -> None:
    # The tiny variants are unknown outside the tests: the eager side fails in its process.
    with pytest.raises(EbsegError, match="model 'tiny-nano' is not known; choose one of ebseg-b"):
        compare_with_eager(CompareConfig(bundle=tiny_nano, repeats=1))


def served(body: Callable[..., Any], *questions: str) -> list[Any]:
    """What a side with this body sends; the first answer is that it is ready, or why not."""
    ours, theirs = Pipe()
    side = threading.Thread(target=_serve, args=(theirs, body, CONFIG, SIZE))
    side.start()
    answers = [ours.recv()]
    for question in questions:
        ours.send(question)
        answers.append(ours.recv())
    ours.close()
    side.join(timeout=10)
    assert not side.is_alive()
    return answers


def test_a_side_runs_and_tells_its_memory() -> None:
    ready, (milliseconds, labels), peak = served(lambda config, size: lambda: np.ones((2, 2)), "run", "peak")
    assert ready == "ready"
    assert milliseconds >= 0
    assert labels.sum() == 4
    assert peak > 1 << 20


@pytest.mark.parametrize(
    ("error", "needle"),
    [
        (InputError("no such canvas", cure="choose another"), "no such canvas; choose another"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "torch is not installed; pip install"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines; "),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_a_side_raises_is_its_answer(error: Exception, needle: str) -> None:
    def while_loading(config: CompareConfig, size: Size) -> Callable[[], Any]:
        raise error

    def while_running(config: CompareConfig, size: Size) -> Callable[[], Any]:
        def run() -> Any:
            raise error

        return run

    for answer in (served(while_loading)[-1], served(while_running, "run")[-1]):
        assert isinstance(answer, EbsegError)
        assert needle in str(answer)
        assert "\n" not in str(answer)


@pytest.mark.parametrize("end", [KeyboardInterrupt, EOFError])
def test_an_interrupted_side_ends_in_silence(end: type[BaseException], capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = Pipe()

    def interrupted(config: CompareConfig, size: Size) -> Callable[[], Any]:
        raise end

    _serve(theirs, interrupted, CONFIG, SIZE)
    assert not ours.poll()
    assert capfd.readouterr().err == ""
