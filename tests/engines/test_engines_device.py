"""What TensorRT proper needs and TensorRT for RTX does not: the GPU at hand, asked of the driver."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ebseg_deploy.errors import ExportError
from ebseg_deploy.export.engines import build as build_module
from ebseg_deploy.export.engines import standalone
from ebseg_deploy.export.engines.build import build_engines
from ebseg_deploy.export.engines.plan import BuildRequest
from ebseg_deploy.export.engines.standalone import gpu_capability
from rtx import needs_rtx


class FakeDriver:
    """The four calls of libcuda that are used."""

    def __init__(self, major: int, minor: int, *, devices: int = 1) -> None:
        self.attributes = {75: major, 76: minor}
        self.devices = devices

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 0 if self.devices else 100  # CUDA_ERROR_NO_DEVICE

    def cuDeviceGet(self, device: object, ordinal: int) -> int:  # noqa: N802
        return 0 if ordinal < self.devices else 101

    def cuDeviceGetAttribute(self, value: object, attribute: int, device: object) -> int:  # noqa: N802
        value._obj.value = self.attributes[attribute]  # type: ignore[attr-defined]
        return 0


@pytest.mark.parametrize(
    ("driver", "capability"),
    [(FakeDriver(8, 7), "8.7"), (FakeDriver(12, 0), "12.0"), (FakeDriver(8, 6, devices=0), None)],
)
def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, capability: str | None) -> None:
    asked: list[str] = []

    def load(name: str) -> FakeDriver:
        asked.append(name)
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert gpu_capability() == capability
    assert len(asked) == 1


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu_capability() is None


@needs_rtx
def test_the_gpu_at_hand_is_the_target(
    bundle: Path, fake_module: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT for RTX under TensorRT's name, on a machine that says it has an 8.6."""
    fake_module("tensorrt", "from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\n")
    monkeypatch.setattr(build_module, "gpu_capability", lambda: "8.6")
    request = BuildRequest(bundle=bundle, target="tensorrt", precision="fp16", graphs=("adab_decoder",))
    (engine,) = build_engines(request)
    assert engine.plan == bundle / "engines/tensorrt/fp16/adab_decoder.64x64.plan"
    assert engine.sidecar.target == "tensorrt"
    assert engine.sidecar.settings.compute_capabilities == ("8.6",)
    (again,) = build_engines(request)
    assert again.kept
    monkeypatch.setattr(build_module, "gpu_capability", lambda: "8.9")  # the disk moved to another machine
    (other,) = build_engines(request)
    assert not other.kept


@needs_rtx
def test_another_gpu_than_the_one_asked_for(bundle: Path, fake_module: Callable[[str, str], None]) -> None:
    fake_module(
        "tensorrt",
        "from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\ndel ComputeCapability\n"
        # In the building process, which has our module loaded when it imports this one.
        "import sys\n"
        "standalone = sys.modules.get('ebseg_deploy.export.engines.standalone')\n"
        "if standalone is not None:\n"
        "    standalone.gpu_capability = lambda: '8.7'\n",
    )
    request = BuildRequest(
        bundle=bundle,
        target="tensorrt",
        precision="fp16",
        compute_capabilities=("8.9",),
        graphs=("adab_decoder",),
    )
    with pytest.raises(ExportError, match=r"builds for the GPU at hand, which has compute capability 8\.7, not 8\.9"):
        build_engines(request)


def test_the_device_script_imports_the_standard_library_alone() -> None:
    """It is copied to devices that have nothing of ours; Python 3.10 is JetPack 6's."""
    file = Path(standalone.__file__)
    code = f"import runpy, sys; runpy.run_path({str(file)!r}); print(*sorted(n for n in sys.modules if '.' not in n))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], env={"PATH": os.defpath}, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "ctypes" in loaded
    assert {name for name in loaded if not name.startswith("_")} <= set(sys.stdlib_module_names)
