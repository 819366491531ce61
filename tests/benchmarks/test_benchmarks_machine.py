"""The description of the machine, with programs and files that say what the test wants."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy
import pytest
from ebseg_deploy.benchmarks import machine


def test_description_is_json_and_plausible() -> None:
    found = machine.describe_machine()
    assert json.loads(json.dumps(found.as_dict()))["packages"]["numpy"] == numpy.__version__
    assert 1 <= found.usable_cores <= found.cores
    assert 0 < found.available_bytes <= found.memory_bytes
    assert found.cpu


@pytest.fixture
def fake_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return program


def answer(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_gpus_as_nvidia_smi_tells_them(fake_smi: Path) -> None:
    answer(fake_smi, "echo 'NVIDIA GeForce RTX 4090, 550.54, 24564, 8.9'; echo 'Orin (nvgpu), 540.4, [N/A], 8.7'")
    assert machine.nvidia_gpus() == (
        machine.Gpu(name="NVIDIA GeForce RTX 4090", driver="550.54", memory_mib=24564, compute_capability="8.9"),
        machine.Gpu(name="Orin (nvgpu)", driver="540.4", memory_mib=None, compute_capability="8.7"),
    )


@pytest.mark.parametrize("script", ["echo 'No devices were found'; exit 6", "echo garbage", "exit 0"])
def test_no_gpu_where_nvidia_smi_has_none(fake_smi: Path, script: str) -> None:
    answer(fake_smi, script)
    assert machine.nvidia_gpus() == ()


def test_a_program_that_hangs_is_given_up(fake_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SMI_TIMEOUT_SECONDS", 0.2)
    answer(fake_smi, "exec sleep 30")
    assert machine.nvidia_gpus() == ()


def test_container_limits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/sys/fs/cgroup/memory.max": "4000",
        "/sys/fs/cgroup/memory.current": "3000",
        "/sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 500",
    }
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    assert machine.container_memory() == (4000, 2500)
    files["/sys/fs/cgroup/memory.max"] = "max"
    assert machine.container_memory()[0] > 1 << 60
