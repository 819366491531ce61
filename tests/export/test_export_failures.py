"""An export that fails leaves nothing behind, keeps what was there, and says why on one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from ebseg_deploy.contract import Size
from ebseg_deploy.errors import CheckpointError, ExportError, InputError, ParityError
from ebseg_deploy.export import bundle_writer, check, output_folder
from ebseg_deploy.export import run as export_run
from ebseg_deploy.export import trace as tracing
from ebseg_deploy.export.bundle_writer import ExportConfig, export_bundle
from ebseg_deploy.export.graphs import exportable_graphs
from ebseg_deploy.export.run import ExportRequest, export_checkpoint
from ebseg_deploy.export.trace import trace
from ebseg_deploy.model.checkpoint import save_checkpoint
from ebseg_deploy.runtime.bundle import Bundle
from tiny_models import TINY_NANO, tiny_model

SIZE = Size(height=64, width=64)


@pytest.fixture(scope="module")
def traced_text_graph() -> Callable[[object], ir.Model]:
    """What `trace` gives for the text graph of one layer, traced once: a fresh copy each time."""
    proto = ir.to_proto(trace(exportable_graphs(tiny_model("tiny-nano"), (SIZE,), 1)[-1]))
    return lambda graph: ir.from_proto(proto)


@pytest.fixture(autouse=True)
def text_graph_alone(monkeypatch: pytest.MonkeyPatch, traced_text_graph: Callable[[object], ir.Model]) -> None:
    """One small graph is enough for an export to fail at every step."""
    monkeypatch.setattr(
        bundle_writer, "exportable_graphs", lambda model, sizes, batch: exportable_graphs(model, sizes, batch)[-1:]
    )
    monkeypatch.setattr(bundle_writer, "trace", traced_text_graph)


def export(target: Path, **options: bool) -> Bundle:
    config = ExportConfig(sizes=(SIZE,), threads=1, **options)
    return export_bundle(tiny_model("tiny-nano"), target, config, provenance={"weights": "seeded"})


def failed_export(target: Path, error: type[BaseException], **options: bool) -> str:
    """The error's text; nothing may be left where nothing was."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(error) as caught:
        export(target, **options)
    assert sorted(target.parent.iterdir()) == before
    text = str(caught.value)
    assert "\n" not in text
    return text


def spoil_trace(monkeypatch: pytest.MonkeyPatch, change: Callable[[ir.Model], None]) -> None:
    """Change what tracing gives, as an exporter's mistake would."""
    sound = bundle_writer.trace

    def spoilt(graph: object) -> ir.Model:
        model = sound(graph)
        change(model)
        return model

    monkeypatch.setattr(bundle_writer, "trace", spoilt)


def scale_largest_weight(model: ir.Model) -> None:
    values = model.graph.initializers.values()
    largest = max((value for value in values if value.const_value is not None), key=lambda v: v.const_value.nbytes)
    largest.const_value = ir.tensor(largest.const_value.numpy() * np.float32(1.01), name=largest.name)


def widen_output(model: ir.Model) -> None:
    model.graph.outputs[0].dtype = ir.DataType.DOUBLE


def rename_output(model: ir.Model) -> None:
    model.graph.outputs[0].name = "something_else"


def test_wrong_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_trace(monkeypatch, scale_largest_weight)
    text = failed_export(tmp_path / "b.ebseg", ParityError)
    assert "graph text_encoder: prompt_embeddings: relative deviation" in text
    assert "exceeds 2e-04 (fp32" in text


def test_tolerance_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TOLERANCES", {"fp32": 0.0})
    assert "exceeds 0e+00" in failed_export(tmp_path / "b.ebseg", ParityError)


def test_not_a_number_is_a_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: ir.Model) -> None:
        for value in model.graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
                spoilt = np.full(value.const_value.numpy().shape, np.nan, np.float32)
                value.const_value = ir.tensor(spoilt, name=value.name)

    spoil_trace(monkeypatch, spoil)
    assert "relative deviation inf" in failed_export(tmp_path / "b.ebseg", ParityError)


@pytest.mark.parametrize("change", [widen_output, rename_output], ids=["type", "name"])
def test_wrong_border(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[ir.Model], None]) -> None:
    spoil_trace(monkeypatch, change)
    assert "text_encoder" in failed_export(tmp_path / "b.ebseg", ExportError)


def test_tracing_that_fails_names_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("no decomposition\nand a page of text")

    monkeypatch.setattr(bundle_writer, "trace", trace)
    monkeypatch.setattr(tracing.torch.onnx, "export", refuse)
    text = failed_export(tmp_path / "b.ebseg", ExportError)
    assert "graph text_encoder: tracing failed: RuntimeError: no decomposition" in text
    assert "a page of text" not in text


@pytest.mark.parametrize("step", ["trace", "write_tokenizer", "check_graph", "file_records"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    old = tmp_path / "b.ebseg"
    old.mkdir()
    (old / "bundle.json").write_text("the old one")

    def fail(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(bundle_writer, step, fail)
    failed_export(old, KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ExportError, overwrite=True)
    assert (old / "bundle.json").read_text() == "the old one"
    failed_export(tmp_path / "new.ebseg", KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ExportError)


def test_small_disk_is_seen_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1000))
    monkeypatch.setattr(bundle_writer, "trace", lambda graph: pytest.fail("traced"))
    assert "free on the disk" in failed_export(tmp_path / "b.ebseg", ExportError)


def test_progress_counts_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_writer.Bundle, "open", lambda path, check_hashes: path)  # one graph is no bundle
    steps: list[tuple[str, int, int]] = []
    export_bundle(
        tiny_model("tiny-nano"),
        tmp_path / "b.ebseg",
        ExportConfig(sizes=(SIZE,), threads=1),
        provenance={},
        progress=lambda *step: steps.append(step),
    )
    assert [step[1:] for step in steps] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert steps[0][0] == "tracing text_encoder"


def test_time_can_be_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert bundle_writer._versions()["created"] == "1970-01-01T00:00:00+00:00"
    for wrong in ("today", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(InputError, match=f"SOURCE_DATE_EPOCH is '{wrong}'; give whole seconds since 1970"):
            bundle_writer._versions()


class TestRequests:
    """What `export_checkpoint` refuses before any work."""

    def test_size_that_is_no_multiple_of_32(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="--size 481x640: sides must be multiples of 32; for example 512x640"):
            ExportRequest(model="ebseg-b", output=tmp_path / "b", sizes=(Size(height=481, width=640),))

    def test_size_given_twice(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="has a size twice"):
            ExportRequest(model="ebseg-b", output=tmp_path / "b", sizes=(SIZE, SIZE))

    def test_unknown_model(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="model 'ebseg-xl' is not known; choose one of"):
            export_checkpoint(ExportRequest(model="ebseg-xl", output=tmp_path / "b"))

    def test_no_weights(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="ebseg-b has no weights of its own here; give --checkpoint"):
            export_checkpoint(ExportRequest(model="ebseg-b", output=tmp_path / "b"))
        assert list(tmp_path.iterdir()) == []

    def test_existing_output(self, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        with pytest.raises(InputError, match="exists; give --overwrite"):
            export_checkpoint(ExportRequest(model="ebseg-b", output=tmp_path / "b", seeded=True))

    def test_checkpoint_of_another_model(self, tmp_path: Path) -> None:
        save_checkpoint(tiny_model("tiny-nano"), tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="is not a checkpoint of ebseg-b"):
            export_checkpoint(
                ExportRequest(model="ebseg-b", checkpoint=tmp_path / "w.pth", output=tmp_path / "b.ebseg")
            )
        assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]

    def test_threads_are_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(export_run, "config_named", lambda name: TINY_NANO)
        monkeypatch.setattr(export_run, "export_bundle", lambda model, output, config, **rest: config)
        save_checkpoint(tiny_model("tiny-nano"), tmp_path / "w.pth")
        threads = torch.get_num_threads()
        try:
            config = export_checkpoint(
                ExportRequest(model="any", checkpoint=tmp_path / "w.pth", output=tmp_path / "b", threads=1)
            )
            assert torch.get_num_threads() == 1
        finally:
            torch.set_num_threads(threads)
        assert config.threads == 1
