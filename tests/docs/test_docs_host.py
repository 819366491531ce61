"""The how-to for hosts without this package says something that runs and gives what the runtime gives."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.runtime.canvas import choose_canvas
from ebseg_deploy.runtime.segmenter import Segmenter
from PIL import Image

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "host.md"


def test_the_example_runs_and_agrees_with_the_runtime(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    shutil.copytree(tiny_bundle, tmp_path / "b.ebseg")
    with Segmenter.load(tiny_bundle) as segmenter:
        size = segmenter.bundle.sizes[0]
        pixels = np.random.default_rng(3).integers(0, 256, (size.height, size.width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "street.jpg", quality=95)
        words = segmenter.vocabulary(["road", "red fox", "sky"], cache=False)
        words.save(tmp_path / "words.safetensors")
        decoded = np.asarray(Image.open(tmp_path / "street.jpg").convert("RGB"))
        place = choose_canvas(size.height, size.width, (size,))
        expected = segmenter.predict([decoded], [place], words)

    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, str(HOW_TO), "exec"), names)

    np.testing.assert_allclose(names["probabilities"], expected.class_probabilities, atol=1e-6)
    np.testing.assert_allclose(names["tensors"]["mask_logits"], expected.mask_logits, atol=1e-5)  # type: ignore[index]
