"""`ebseg build` and `ebseg inspect` of engines, through the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import Result
from command_line import assert_refused, run
from ebseg_deploy.runtime.engine_file import check_engine, sidecar_path
from rtx import needs_rtx
from sidecars import make_layer, make_sidecar


@needs_rtx
def test_build_inspect_and_compare(bundle: Path) -> None:
    words = ("build", bundle, "--target", "tensorrt-rtx", "--graph", "adab_decoder", "--graph", "text_encoder")
    outcome = run(*words, "--precision", "fp16", "--prompts", "1:2:3", "--workspace", "0.5GiB", "--json")
    assert outcome.exit_code == 0, outcome.output
    answer = json.loads(outcome.stdout)
    assert [each["graph"] for each in answer] == ["adab_decoder", "text_encoder"]
    assert answer[0]["census"]["products_by_type"] == {"Half": 1}
    assert answer[1]["settings"]["profile"]["prompts"] == {"min": 1, "opt": 2, "max": 3}
    assert answer[1]["settings"]["workspace_bytes"] == 512 << 20
    assert [each["kept"] for each in answer] == [False, False]
    table = run(*words).stdout
    assert "adab_decoder.64x64.plan" in table
    assert "1 Float" in table

    half, full = (Path(answer[0]["plan"]), bundle / "engines/tensorrt-rtx/fp32/adab_decoder.64x64.plan")
    text = run("inspect", half).stdout
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "precision fp16" in lines
    assert "TF32 off" in lines
    assert any(line.startswith("Half ") and line.endswith(" 1 100.0%") for line in lines)
    assert "out mask_logits float32 1 × 8 × 16 × 16" in lines
    assert lines[-1] == "Every product computes in a type that fp16 promises."
    shown = json.loads(run("inspect", half, "--json").stdout)
    assert shown["broken_promise"] is None
    assert {key: shown[key] for key in ("kind", "graph", "precision")} == {
        "kind": "engine",
        "graph": "adab_decoder",
        "precision": "fp16",
    }
    rows = json.loads(run("inspect", half, "--against", full, "--json").stdout)
    assert {"what": "precision", "first": "fp16", "second": "fp32"} in rows
    assert {"what": "products in Half", "first": "1", "second": "0"} in rows
    assert "precision" in run("inspect", half, "--against", full).stdout
    assert "made alike" in run("inspect", half, "--against", half).stdout


@needs_rtx
def test_inspect_says_that_a_label_lies(bundle: Path) -> None:
    words = ("build", bundle, "--target", "tensorrt-rtx", "--graph", "adab_decoder", "--precision")
    assert run(*words, "fp32").exit_code == 0
    plan = bundle / "engines/tensorrt-rtx/fp32/adab_decoder.64x64.plan"
    sidecar = msgspec.structs.replace(check_engine(plan), precision="fp16")
    sidecar_path(plan).write_bytes(msgspec.json.encode(sidecar))
    assert "promised fp16, but 1 of 1 products are not: 1 Float" in run("inspect", plan).stdout
    # Without layers in the sidecar, as scripts for devices write it, the log beside the plan is read.
    sidecar_path(plan).write_bytes(msgspec.json.encode(msgspec.structs.replace(sidecar, layers=())))
    assert "promised fp16, but 1 of 1 products are not: 1 Float" in run("inspect", plan).stdout
    plan.with_suffix(".build.log").unlink()
    assert "no layer report" in run("inspect", plan).stdout


@needs_rtx
def test_a_planted_graph_fails_the_command(bundle: Path) -> None:
    words = ("build", bundle, "--target", "tensorrt-rtx", "--precision", "fp8", "--compute-capability", "8.9")
    assert_refused(run(*words), "clip_image_encoder: promised fp8, but 4 of 4", "--keep-fp32")


@pytest.mark.parametrize(
    ("options", "needles"),
    [
        (("--classes", "5:3:9"), ("--classes 5:3:9", "min ≤ opt ≤ max")),
        (("--tokens", "2:16:99"), ("--tokens", "2 to 77")),
        (("--compute-capability", "8.7"), ("8.7 (Orin)", "--target tensorrt")),
        (("--compute-capability", "orin"), ("orin",)),
        (("--precision", "fp8", "--compute-capability", "8.6"), ("fp8", "8.9")),
        (("--precision", "bf16", "--compute-capability", "7.5"), ("bf16", "7.5")),
        (("--script",), ("--script", "-o FOLDER")),
        (("--batch", "0:1:8"), ("--batch 0:1:8", "1 to 1024")),
        (("--timing-cache", "x.cache"), ("x.cache", "tensorrt-rtx times no kernels")),
        (("--merged", "--graph", "text_encoder"), ("--graph text_encoder", "--merged")),
    ],
)
def test_options_that_cannot_be(tiny_bundle: Path, options: tuple[str, ...], needles: tuple[str, ...]) -> None:
    assert_refused(run("build", tiny_bundle, "--target", "tensorrt-rtx", *options), *needles)
    assert not (tiny_bundle / "engines").exists()


@needs_rtx
def test_a_batch_that_the_bundle_does_not_run(tiny_bundle: Path) -> None:
    outcome = run("build", tiny_bundle, "--target", "tensorrt-rtx", "--batch", "1:1:8")
    assert_refused(outcome, "--batch 1:1:8", "run 1 at a time", "export --batch 8 --dynamic-batch")


@pytest.mark.parametrize("text", ["0", "2 GB", "-1", "much", "1e9", ""])
def test_a_workspace_that_is_no_amount(tiny_bundle: Path, text: str) -> None:
    outcome = run("build", tiny_bundle, "--target", "tensorrt-rtx", "--workspace", text)
    assert outcome.exit_code == 2
    assert "is no amount of memory" in outcome.stderr


def test_a_missing_builder_names_the_pip_line(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_refused(run("build", tiny_bundle, "--target", "tensorrt-rtx"), "pip install 'ebseg-deploy[tensorrt-rtx]'")
    assert_refused(run("build", tiny_bundle, "--target", "tensorrt"), "pip install tensorrt", "JetPack")


def test_tensorrt_without_a_gpu_names_the_script(
    tiny_bundle: Path, fake_module: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ebseg_deploy.export.engines import build

    fake_module("tensorrt", "__version__ = '10.3.0'")
    monkeypatch.setattr(build, "gpu_capability", lambda: None)
    assert_refused(run("build", tiny_bundle, "--target", "tensorrt"), "this machine has none", "--script")


def test_inspect_of_what_is_no_engine(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "x.plan").write_bytes(b"plan")
    assert_refused(run("inspect", tmp_path / "x.plan"), "x.plan.json is missing", "ebseg build")
    assert_refused(run("inspect", tiny_bundle, "--against", tmp_path / "x.plan"), "is no engine")


def test_a_page_and_json_at_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        sidecar = make_sidecar([make_layer("Half", "gemm", 5, f"{name}/MatMul")], precision=f"fp16-{name}")
        (tmp_path / f"{name}.plan.json").write_bytes(msgspec.json.encode(sidecar))
    page, words = tmp_path / "page.html", ("inspect", tmp_path / "one.plan", "--html", tmp_path / "page.html")
    (tmp_path / "one.plan").touch()
    assert run(*words).stdout == f"{page}: open it in a browser\n"
    page.unlink()
    assert json.loads(run(*words, "--json").stdout)["precision"] == "fp16-one"
    assert "fp16-one" in page.read_text()
    different = json.loads(run(*words, "--json", "--against", tmp_path / "two.plan").stdout)
    assert {"what": "precision", "first": "fp16-one", "second": "fp16-two"} in different
    assert "fp16-two" in page.read_text()


def script(bundle: Path, folder: Path, *options: object) -> Result:
    return run("build", bundle, "--target", "tensorrt", "--script", "-o", folder, *options)


@needs_rtx
def test_the_script_builds_with_nothing_of_ours(bundle: Path, tmp_path: Path) -> None:
    """Run for real, with TensorRT for RTX under TensorRT's name and a fresh, isolated interpreter path."""
    folder = tmp_path / "device"
    outcome = script(bundle, folder, "--precision", "fp16", "--compute-capability", "8.6", "--classes", "1:5:9")
    assert outcome.exit_code == 0, outcome.output
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "build.py",
        "build.sh",
        "check.sh",
        "graphs",
        "jobs.json",
    }
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "tensorrt.py").write_text("from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\n")
    environment = {"PYTHONPATH": str(shim), "PATH": "/usr/bin:/bin"}

    def build(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(folder / "build.py"), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    wrong = build("--compute-capability", "8.7")
    assert wrong.returncode == 1
    assert "meant for compute capability 8.6, this GPU has 8.7" in wrong.stderr
    done = build()
    assert done.returncode == 0, done.stderr
    place = folder / "engines/tensorrt/fp16"
    assert len(list(place.glob("*.plan"))) == 5
    head = check_engine(place / "open_vocab_head.plan")
    assert (head.target, head.precision, head.settings.compute_capabilities) == ("tensorrt", "fp16", ("8.6",))
    assert head.settings.profile["classes_and_background"].max == 10
    # The log was kept, so a machine with our package sees the types.
    shown = run("inspect", place / "adab_decoder.64x64.plan").stdout
    assert "Every product computes in a type that fp16 promises." in shown
    # Sealing plans that trtexec made.
    sidecar_path(place / "text_encoder.plan").unlink()
    assert build("--seal").returncode == 0
    assert check_engine(place / "text_encoder.plan").graph == "text_encoder"


FAKE_TRTEXEC = """#!/bin/sh
echo "$@" >> calls.txt
for word in "$@"; do
    case $word in --saveEngine=*) plan=${word#--saveEngine=} ;; --onnx=*text_encoder*) [ -n "$FAIL" ] && exit 3 ;; esac
done
echo plan > "$plan"
echo "[I] built"
"""


@pytest.mark.skipif(shutil.which("sh") is None, reason="no sh here")
def test_the_shell_script_calls_trtexec(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my device"
    options = ("--precision", "fp16", "--compute-capability", "8.7", "--workspace", "2GiB")
    assert script(bundle, folder, *options).exit_code == 0
    trtexec = tmp_path / "trtexec"
    trtexec.write_text(FAKE_TRTEXEC)
    trtexec.chmod(0o755)

    def build(**environment: str) -> subprocess.CompletedProcess[str]:
        given = {"TRTEXEC": str(trtexec), "PATH": "/usr/bin:/bin", **environment}
        command = ["sh", str(folder / "build.sh")]
        return subprocess.run(command, env=given, capture_output=True, text=True, check=False)

    failed = build(FAIL="1")
    assert failed.returncode == 1
    assert "text_encoder.plan failed; see engines/tensorrt/fp16/text_encoder.build.log" in failed.stderr
    place = folder / "engines/tensorrt/fp16"
    assert len(list(place.glob("*.plan"))) == 4
    assert list(place.glob("*.partial")) == []
    assert build().returncode == 0
    assert len(list(place.glob("*.plan"))) == 5
    calls = (folder / "calls.txt").read_text().splitlines()
    assert len(calls) == 6  # four, the one that failed, and that one again: what was there is kept
    assert "--stronglyTyped" in calls[0]
    assert "--minShapes=tokens:1x2 --optShapes=tokens:14x16 --maxShapes=tokens:64x77" in calls[-1]
    assert "--noTF32 --memPoolSize=workspace:2048M" in calls[-1]
    assert "--timingCacheFile=engines/tensorrt/fp16/timing.cache" in calls[-1]
    check = subprocess.run(["sh", "-n", str(folder / "check.sh")], capture_output=True, check=False)
    assert check.returncode == 0
    assert build(TRTEXEC="/none").returncode == 1


def test_the_script_of_a_merged_engine(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    options = ("--precision", "fp16", "--compute-capability", "8.7", "--merged", "--timing-cache", "none")
    assert script(bundle, folder, *options).exit_code == 0
    assert {path.name for path in (folder / "graphs/fp16").iterdir()} == {"merged.64x64.onnx", "text_encoder.onnx"}
    jobs = json.loads((folder / "jobs.json").read_text())
    assert [job["graph_file"] for job in jobs] == ["graphs/fp16/merged.64x64.onnx", "graphs/fp16/text_encoder.onnx"]
    assert jobs[0]["sidecar"]["graph"] == "merged"
    assert len(jobs[0]["sidecar"]["source"]) == 4
    lines = (folder / "build.sh").read_text()
    assert "engines/tensorrt/fp16/merged.64x64.plan" in lines
    assert "timingCacheFile" not in lines


def test_scripts_that_are_refused(bundle: Path, tmp_path: Path) -> None:
    assert_refused(run("build", bundle, "--target", "tensorrt-rtx", "--script", "-o", tmp_path / "x"), "any machine")
    assert_refused(script(bundle, tmp_path / "x", "--timing-cache", "x.cache"), "x.cache", "beside the engines")
    (tmp_path / "taken").mkdir()
    assert_refused(script(bundle, tmp_path / "taken"), "taken exists")
    taken = tmp_path / "file"
    taken.write_text("mine")
    assert_refused(script(bundle, taken / "below"), "cannot be written")
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.slow
@needs_rtx
def test_polygraphy_builds_our_graphs_unaided(bundle: Path, tmp_path: Path) -> None:
    """All five graphs and the merged one, with nothing said about shapes but where two dynamic lengths depend."""
    pytest.importorskip("polygraphy", reason="polygraphy is not installed")
    program = Path(sys.executable).with_name("polygraphy")

    def polygraphy(*words: object) -> str:
        done = subprocess.run(
            [program, *map(str, words)],
            env={"POLYGRAPHY_USE_TENSORRT_RTX": "1", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    merged = tmp_path / "merged.onnx"
    assert run("merge", bundle, "--precision", "fp16", "-o", merged).exit_code == 0
    for graph in (*sorted((bundle / "graphs/fp16").glob("*.onnx")), merged):
        plan = tmp_path / f"{graph.stem}.plan"
        classes = []
        if graph.stem in ("open_vocab_head", "merged"):
            for i, which in enumerate(("min", "opt", "max")):
                classes += [f"--trt-{which}-shapes", f"text_embeddings:[{2 + i},16]", f"seen:[{1 + i}]"]
        polygraphy("convert", graph, "--strongly-typed", *classes, "-o", plan)
        assert plan.stat().st_size > 10_000
        assert "ONNX Opset: 18" in polygraphy("inspect", "model", graph)
