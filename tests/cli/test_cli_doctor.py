"""`ebseg doctor`: what is there, what is not, and when the runtime cannot work."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from ebseg_deploy.cli import doctor, ebseg


def report(*, code: int) -> dict[str, dict[str, str]]:
    outcome = CliRunner().invoke(ebseg, ["doctor", "--json"])
    assert outcome.exit_code == code, outcome.output
    answer = json.loads(outcome.stdout)
    assert answer["able"] is (code == 0)
    return {check["what"].strip(): check for check in answer["checks"]}


@pytest.fixture
def only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    """No optional engine, no export package, whatever this machine has."""
    real = importlib.util.find_spec
    hidden = {*doctor.ENGINES, *doctor.EXPORT_MODULES}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else real(name))


def fake_onnxruntime(*providers: str) -> SimpleNamespace:
    return SimpleNamespace(__version__="1.99", get_available_providers=lambda: list(providers))


@pytest.mark.usefixtures("only_these")
def test_a_cpu_only_machine_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime("CPUExecutionProvider"))
    checks = report(code=0)
    assert checks["onnxruntime"]["found"] == "1.99"
    assert checks["CPUExecutionProvider"]["state"] == "ok"
    assert checks["CUDAExecutionProvider"]["state"] == "absent"
    assert "ebseg-deploy[gpu]" in checks["CUDAExecutionProvider"]["cure"]
    assert checks["export packages"]["cure"] == "pip install 'ebseg-deploy[export,cpu]'"
    for engine in doctor.ENGINES:
        assert checks[engine]["state"] == "absent"
        assert "pip install" in checks[engine]["cure"]


def test_providers_this_project_does_not_name_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime("CPUExecutionProvider", "DmlExecutionProvider"))
    assert report(code=0)["DmlExecutionProvider"]["state"] == "ok"


def test_without_onnxruntime_the_runtime_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check = report(code=1)["onnxruntime"]
    assert check["state"] == "fault"
    assert check["cure"] == "pip install 'ebseg-deploy[cpu]'"


def test_an_engine_that_does_not_load_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", broken)
    check = doctor._engine("tensorrt", "pip install tensorrt-cu12")
    assert check.state == "warning"
    assert "libnvinfer.so.10" in check.found


def test_people_get_a_table_with_the_verdict() -> None:
    outcome = CliRunner().invoke(ebseg, ["doctor"])
    assert outcome.exit_code == 0
    assert "processor" in outcome.stdout
    assert outcome.stdout.rstrip().endswith("The runtime can work here.")


@pytest.mark.parametrize(
    ("version", "capability", "needle"),
    [
        ("10.2.0.19", None, "ultralytics/ultralytics#24367"),
        ("10.9.0.34", None, None),
        ("10.9.0.34", "8.9", None),
        ("10.9.0.34", "12.0", "NVIDIA/TensorRT#4837"),
    ],
)
def test_a_release_or_gpu_of_which_faults_are_known_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, version: str, capability: str | None, needle: str | None
) -> None:
    from ebseg_deploy.runtime import gpu_host

    def find_gpu(*, engine: str, engine_version: str) -> gpu_host.GpuHost | None:
        if capability is None:
            return None
        return gpu_host.GpuHost(
            engine=engine, engine_version=engine_version, gpu="GPU-1", compute_capability=capability, driver="550.54"
        )

    monkeypatch.setattr(gpu_host, "find_gpu", find_gpu)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "tensorrt" else real(name))
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))
    check = report(code=0)["tensorrt"]
    assert check["state"] == ("ok" if needle is None else "warning")
    assert check["found"].startswith(version)
    if needle is not None:
        assert needle in check["found"]
        assert "first run" in check["cure"]
