"""Whatever becomes of a building process becomes an error with the graph's name, and nothing half-written."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from ebseg_deploy.contract import EngineSettings, GraphSpec, TensorSpec, graph_spec
from ebseg_deploy.errors import BackendError, ExportError
from ebseg_deploy.export.engines import standalone
from ebseg_deploy.export.engines.build import installed_version
from ebseg_deploy.export.engines.job import BuildJob, Built
from ebseg_deploy.export.engines.process import run_job
from ebseg_deploy.export.engines.targets import TENSORRT, TENSORRT_RTX
from onnx import TensorProto, helper, save
from rtx import needs_rtx
from tiny_bundles import TINY_MODEL, TINY_SIZES

FakeModule = Callable[[str, str], None]

SLEEPER = """
import os, time
__version__ = "1.0"

class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

class Builder:
    def __init__(self, logger):
        logger.log(3, "building")
        with open(os.environ["BUILDER_STARTED"], "w") as file:
            file.write(str(os.getpid()))
        time.sleep(120)
"""
"""A module whose builder never ends."""


def job(module: str, folder: Path, graph: Path | str = "none.onnx", plan: Path | str | None = None) -> BuildJob:
    return BuildJob(
        module=module,
        target="tensorrt-rtx",
        graph="sam_image_encoder",
        graph_file=str(graph),
        spec=graph_spec("sam_image_encoder", TINY_MODEL, TINY_SIZES[0]),
        settings=EngineSettings(
            compute_capabilities=("8.6",), profile={}, workspace_bytes=None, tf32=False, keep_fp32=()
        ),
        plan_file=str(plan or folder / "x.plan"),
        log_file=str(folder / "x.log"),
    )


def run(built: BuildJob, watch: Callable[[float, str], None] = lambda fraction, phase: None) -> Built:
    return run_job(built, label="sam 64x64", log_name=Path("named.log"), watch=watch)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os; print('last words', flush=True); os.abort()", r"died of SIGABRT.*last words"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"died of SIGKILL \(out of memory\?\)"),
        ("raise ImportError('libnvinfer.so.10 not found')", r"died with exit code 1.*libnvinfer\.so\.10 not found"),
        ("import sys; sys.exit(0)", "ended without an answer"),
    ],
)
def test_a_builder_that_dies(fake_module: FakeModule, tmp_path: Path, source: str, said: str) -> None:
    fake_module("dying_builder", source)
    with pytest.raises(ExportError, match=rf"engine sam 64x64: the builder {said}") as caught:
        run(job("dying_builder", tmp_path))
    assert "named.log" in str(caught.value)


@needs_rtx
def test_a_graph_the_builder_refuses_after_parsing(tmp_path: Path) -> None:
    """ONNX Attention in FP32: the parser takes it, the builder has no kernel. One reason for NEWEST_OPSET."""
    shape, names = (1, 12, 400, 64), ("query", "key", "value")
    graph = helper.make_graph(
        [helper.make_node("Attention", list(names), ["out"])],
        "attention",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    save(model, tmp_path / "attention.onnx")
    tensors = {name: TensorSpec(name=name, dtype="float32", shape=shape) for name in (*names, "out")}
    spec = GraphSpec(inputs=tuple(tensors[name] for name in names), outputs=(tensors["out"],))
    refused = msgspec.structs.replace(job("tensorrt_rtx", tmp_path, tmp_path / "attention.onnx"), spec=spec)
    with pytest.raises(ExportError, match=r"engine sam 64x64: the builder gave no engine; its log ends: .*Attention"):
        run(refused)
    assert not (tmp_path / "x.plan").exists()


@needs_rtx
def test_a_disk_that_fills_up_while_the_plan_is_written(tiny_bundle: Path, tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    graph = tiny_bundle / "graphs/fp32/sam_image_encoder_64x64.onnx"
    with pytest.raises(ExportError, match=r"the plan of 0 MB cannot be written: No space left on device.*free some"):
        run(job("tensorrt_rtx", tmp_path, graph, full))


@needs_rtx
def test_a_module_without_what_newer_ones_have(fake_module: FakeModule, tiny_bundle: Path, tmp_path: Path) -> None:
    """TensorRT has no list of GPUs to build for, and some releases no progress monitor and no TF32 flag."""
    fake_module(
        "older_tensorrt",
        "from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\n"
        "del ComputeCapability, IProgressMonitor\n"
        "class BuilderFlag: pass\n",
    )
    seen: list[float] = []
    graph = tiny_bundle / "graphs/fp32/sam_image_encoder_64x64.onnx"
    built = run(job("older_tensorrt", tmp_path, graph), lambda fraction, phase: seen.append(fraction))
    assert (tmp_path / "x.plan").stat().st_size > 10_000
    assert built.compute_capabilities == ("8.6",)
    assert seen == []
    newer = run(job("tensorrt_rtx", tmp_path, graph), lambda fraction, phase: seen.append(fraction))
    assert newer.tensorrt_version == built.tensorrt_version
    assert seen
    assert all(0 <= fraction <= 1 for fraction in seen)


@needs_rtx
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_the_peak_is_the_builders_and_not_its_parents(tiny_bundle: Path, tmp_path: Path) -> None:
    ballast = bytearray(1 << 30)
    ballast[::4096] = b"x" * len(ballast[::4096])
    built = run(job("tensorrt_rtx", tmp_path, tiny_bundle / "graphs/fp32/sam_image_encoder_64x64.onnx"))
    assert built.peak_bytes is not None
    assert 50 << 20 < built.peak_bytes < 800 << 20 < len(ballast)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    import psutil

    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


def test_ctrl_c_ends_the_builder_and_leaves_nothing(
    fake_module: FakeModule, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_module("tensorrt_rtx", SLEEPER)
    started, out = tmp_path / "started", tmp_path / "out"
    monkeypatch.setenv("BUILDER_STARTED", str(started))
    command = [
        sys.executable,
        "-m",
        "ebseg_deploy",
        "build",
        str(tiny_bundle),
        "--target",
        "tensorrt-rtx",
        "-o",
        str(out),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: started.exists() and started.read_text() != "")
        builder = int(started.read_text())
        assert is_alive(builder)
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr.strip()) == (130, "", "interrupted")
    wait_for(lambda: not is_alive(builder))
    assert list(out.iterdir()) == []


def test_a_module_that_does_not_load(fake_module: FakeModule) -> None:
    fake_module("tensorrt", "raise OSError('libcuda.so.1: cannot open shared object file')")
    with pytest.raises(BackendError, match=r"tensorrt is installed but does not load: OSError: libcuda\.so\.1"):
        installed_version(TENSORRT)


def test_the_version_is_asked_without_loading_the_module_here(fake_module: FakeModule) -> None:
    fake_module("tensorrt", "print('[TRT] hello')\n__version__ = '10.3.0'")
    assert installed_version(TENSORRT) == "10.3.0"
    assert "tensorrt" not in sys.modules


CACHING = """
import os
__version__ = "10.3.0"

class Config:
    def create_timing_cache(self, content):
        if content == b"damaged":
            raise RuntimeError("no cache")
        return content

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache
        return cache != b"of another GPU"
"""
"""What of TensorRT's configuration concerns the timing cache; a cache is its own bytes."""


@pytest.mark.parametrize(
    ("found", "used", "said"),
    [
        (None, b"", "begun"),
        (b"measured", b"measured", "8 bytes"),
        (b"damaged", b"", "not of this TensorRT and GPU, or damaged"),
        (b"of another GPU", b"", "not of this TensorRT and GPU, or damaged"),
    ],
)
def test_a_timing_cache_that_does_not_fit_is_begun_again(
    tmp_path: Path, found: bytes | None, used: bytes, said: str
) -> None:
    space: dict[str, type] = {}
    exec(CACHING, space)
    path = tmp_path / "timing.cache"
    if found is not None:
        path.write_bytes(found)
    log = io.StringIO()
    assert standalone._timing_cache(space["Config"](), str(path), log) == used
    assert said in log.getvalue()


def test_no_timing_cache_where_there_is_none_to_have(tmp_path: Path) -> None:
    space: dict[str, type] = {}
    exec(CACHING, space)
    log = io.StringIO()
    assert standalone._timing_cache(space["Config"](), None, log) is None
    assert standalone._timing_cache(object(), str(tmp_path / "timing.cache"), log) is None
    assert log.getvalue() == ""


def test_a_timing_cache_on_a_full_disk_is_a_warning(tmp_path: Path) -> None:
    log = io.StringIO()
    cache = SimpleNamespace(serialize=lambda: b"measured")
    standalone._keep_timing_cache(cache, str(tmp_path / "timing.cache"), log)
    assert (tmp_path / "timing.cache").read_bytes() == b"measured"
    assert [path.name for path in tmp_path.iterdir()] == ["timing.cache"]
    standalone._keep_timing_cache(cache, str(tmp_path / "nowhere/timing.cache"), log)
    assert "cannot be written: No such file or directory" in log.getvalue()


@needs_rtx
def test_a_timing_cache_goes_through_the_real_api(tmp_path: Path, bundle: Path) -> None:
    """TensorRT for RTX keeps the calls and measures nothing: they are made, and their results are kept."""
    graph = bundle / "graphs/fp32/sam_image_encoder_64x64.onnx"
    cache = tmp_path / "timing.cache"
    asked = msgspec.structs.replace(job("tensorrt_rtx", tmp_path, graph), timing_cache=str(cache))
    run(asked)
    first = cache.read_bytes()
    assert first
    run(asked)
    assert f"timing cache {cache}: {len(first)} bytes" in (tmp_path / "x.log").read_text()


def test_which_targets_time_kernels() -> None:
    assert (TENSORRT.timing_cache, TENSORRT_RTX.timing_cache) == (True, False)
    assert (TENSORRT.static_memory, TENSORRT_RTX.static_memory) == (False, True)


@needs_rtx
def test_the_flag_for_graph_capture_reaches_the_builder(tmp_path: Path) -> None:
    import tensorrt_rtx

    config = tensorrt_rtx.Builder(tensorrt_rtx.Logger()).create_builder_config()
    builder = SimpleNamespace()
    asked = msgspec.to_builtins(job("tensorrt_rtx", tmp_path))
    flag = tensorrt_rtx.BuilderFlag.REQUIRE_USER_ALLOCATION
    standalone._configure(tensorrt_rtx, builder, config, asked)
    assert not config.get_flag(flag)
    asked["settings"]["static_memory"] = True
    standalone._configure(tensorrt_rtx, builder, config, asked)
    assert config.get_flag(flag)
