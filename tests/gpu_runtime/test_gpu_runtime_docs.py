"""What docs/how-to/gpu-runtime.md shows works as shown, over the recording device."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ebseg_deploy.contract import Size
from ebseg_deploy.runtime.backends import tensorrt_backend
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.device import DeviceArray, RecordingDevice
from ebseg_deploy.runtime.kernels import device_label_map
from ebseg_deploy.runtime.known_bad import KNOWN_BAD
from fake_tensorrt import FakeTensorRt, write_engines
from test_gpu_runtime_label_kernel import ARCHITECTURES
from tiny_bundles import add_references

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "gpu-runtime.md"


def test_examples_run(
    make_tiny_bundle: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    size = Size(height=480, width=640)
    made = add_references(make_tiny_bundle("made.ebseg", sizes=(size,), precisions=("fp16",)))
    shutil.move(write_engines(made), tmp_path / "b.ebseg")
    monkeypatch.chdir(tmp_path)
    device = RecordingDevice()
    monkeypatch.setattr(tensorrt_backend, "CudaPythonDevice", lambda: device)
    monkeypatch.setattr(tensorrt_backend, "load_tensorrt", lambda target: FakeTensorRt(device))
    monkeypatch.setattr(device_label_map, "compile_kernels", lambda source, capability: b"")
    monkeypatch.setattr("ebseg_deploy.runtime.device.CudaPythonDevice", lambda *, own_context: device)
    given = []
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(asarray=given.append))

    shape = (1, 3, 480, 640)
    image = DeviceArray(address=device.allocate(int(np.prod(shape))), shape=shape, dtype=np.dtype(np.uint8))
    words = np.eye(5, 16, dtype=np.float32)
    names = {
        "np": np,
        "cupy": sys.modules["cupy"],
        "image": image,
        "vocabulary": SimpleNamespace(text_embeddings=words, seen_flags=np.ones(4, np.float32)),
    }
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["labels"].shape == (480, 640)
    assert given[0].shape == (1, 8, 120, 160)
    assert names["segmenter"].bundle.sizes == Bundle.open("b.ebseg").sizes
    shown = re.search(r"print\(error\)  # (.*)", PAGE.read_text())
    assert shown is not None
    assert capsys.readouterr().out.strip() == shown[1]


def test_every_gpu_the_kernel_is_compiled_for_is_in_the_table() -> None:
    rows = re.findall(r"^\| \w.*?\| ([\d., ]+) \| yes \|$", PAGE.read_text(), flags=re.MULTILINE)
    named = {capability.strip().replace(".", "") for row in rows for capability in row.split(",")}
    assert named == set(ARCHITECTURES)


def test_every_known_fault_is_in_the_table() -> None:
    rows = re.findall(r"^\| (.*?) \| \[(.*?)\]\(https://github.com/(.*?)\) \|", PAGE.read_text(), flags=re.MULTILINE)
    assert [(what, reference) for what, reference, _ in rows] == [(each.what, each.reference) for each in KNOWN_BAD]
    for _, reference, address in rows:
        assert address.replace("/issues/", "#").replace("/pull/", "#") == reference
