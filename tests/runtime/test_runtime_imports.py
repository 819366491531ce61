"""The runtime ships to devices that have no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ebseg_deploy
import pytest

PROGRAM = """
import importlib, pkgutil, sys

class Refuse:
    names = {"torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "open_clip", "segment_anything", "scipy"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names or name.startswith(("ebseg_deploy.model", "ebseg_deploy.export")):
            raise ImportError(f"the runtime must not import {name}")

sys.meta_path.insert(0, Refuse())
import ebseg_deploy
package = importlib.import_module("ebseg_deploy.runtime")
for module in pkgutil.walk_packages(package.__path__, "ebseg_deploy.runtime."):
    importlib.import_module(module.name)
from ebseg_deploy import Segmenter
segmenter = Segmenter.load(sys.argv[1])
print(segmenter(sys.argv[2], segmenter.vocabulary(["cat", "road"])).labels.shape)
"""


def test_runtime_imports_and_segments_without_torch(tiny_bundle: Path, picture: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_bundle), str(picture)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(60, 90)"


def test_import_alone_is_light() -> None:
    program = "import sys, ebseg_deploy; print([m for m in ('numpy', 'onnxruntime', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        _ = ebseg_deploy.Segmentor
