"""Bundles to build engines from, and what stands in for a builder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_precision_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny graphs in fp32, fp16 and int8, and FP32 graphs that are labelled bf16 and fp8; do not change it."""
    pytest.importorskip("onnx")
    from precision_graphs import convert
    from tiny_bundles import TINY_SIZES, write_tiny_bundle

    folder = tmp_path_factory.mktemp("precisions") / "tiny.ebseg"
    write_tiny_bundle(folder, precisions=("fp32", "fp16", "int8", "bf16", "fp8"), sizes=TINY_SIZES[:1])
    for precision in ("fp16", "int8"):
        convert(folder, precision)
    return folder


@pytest.fixture
def bundle(shared_precision_bundle: Path, tmp_path: Path) -> Path:
    """That bundle once more, to put engines in or to break."""
    return Path(shutil.copytree(shared_precision_bundle, tmp_path / "tiny.ebseg"))


@pytest.fixture
def fake_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """fake_module("tensorrt", source): a module that building processes, and this one, find first."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))

    def write(name: str, source: str) -> None:
        (folder / f"{name}.py").write_text(source, encoding="utf-8")

    return write
