"""What docs/how-to/choose-a-backend.md shows works as shown."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from ebseg_deploy.runtime.backends import BACKEND_NAMES
from ebseg_deploy.runtime.backends.onnxruntime_backend import INSTALL
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "choose-a-backend.md"


def test_examples_run(tiny_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "b.ebseg")
    Image.open(picture).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {"__name__": "example"})


def test_every_backend_is_in_the_table() -> None:
    text = PAGE.read_text()
    for name in BACKEND_NAMES:
        assert f"| `{name}` |" in text
    for provider in ("cpu", "cuda"):
        assert INSTALL[provider] in text
