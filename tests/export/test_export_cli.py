"""`ebseg export` and `ebseg verify` as a user meets them: real processes, exit codes, and Ctrl-C."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from ebseg_deploy.cli import ebseg as root
from ebseg_deploy.runtime.bundle import Bundle

EBSEG = [sys.executable, "-m", "ebseg_deploy"]


def ebseg(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*EBSEG, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--model", "ebseg-b", "-o", "b.ebseg"), 1, "ebseg-b has no weights of its own here"),
        (("--model", "ebseg-xl", "--seeded", "-o", "b.ebseg"), 1, "model 'ebseg-xl' is not known"),
        (("--model", "ebseg-b", "--seeded", "--size", "640", "-o", "b.ebseg"), 2, "'640' is no size"),
        (("--model", "ebseg-b", "--seeded", "--size", "650x640", "-o", "b.ebseg"), 1, "for example 672x640"),
        (("--model", "ebseg-b", "--checkpoint", "none.pth", "-o", "b.ebseg"), 1, "none.pth: no such file"),
        (("--model", "ebseg-b", "--checkpoint", "w.pth", "--seeded", "-o", "b"), 2, "not both"),
        (("--model", "ebseg-b", "--seeded"), 2, "Missing option"),
        (("--model", "ebseg-b", "--seeded", "--batch", "0", "-o", "b.ebseg"), 2, "batch"),
    ],
)
def test_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(root, ["export", *arguments])
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
    if code == 1:
        assert len(result.stderr.splitlines()) == 1


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """SIGINT while graphs are traced: exit code 130, no bundle, no partial folder, the old bundle as it was."""
    old = tmp_path / "nano.ebseg"
    old.mkdir()
    (old / "bundle.json").write_text("the old one")
    process = subprocess.Popen(
        [*EBSEG, "export", "--model", "ebseg-nano", "--seeded", "--size", "64x64", "--overwrite", "-o", str(old)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    traced = tmp_path / ".nano.ebseg.partial" / "graphs" / "fp32" / "clip_image_encoder.weights"
    while not traced.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert traced.exists(), "the export did not begin"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    assert output == ""
    assert [path.name for path in tmp_path.iterdir()] == ["nano.ebseg"]
    assert (old / "bundle.json").read_text() == "the old one"


def test_verify_says_what_passed(exported: Bundle, tmp_path: Path) -> None:
    result = ebseg("verify", exported.path, "--json", "--threads", 1, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["passed"] is True
    assert report["files"] == len(exported.manifest.files)
    assert len(report["outputs"]) == 2 * (7 + 4 + 4 + 1 + 1)
    table = ebseg("verify", exported.path, "--threads", 1, folder=tmp_path)
    assert table.returncode == 0
    assert "class_probabilities" in table.stdout
    assert "DIFFERS" not in table.stdout


@pytest.mark.parametrize("options", [(), ("--hashes-only",)])
def test_verify_fails_on_a_changed_byte(exported: Bundle, tmp_path: Path, options: tuple[str, ...]) -> None:
    copy = Path(shutil.copytree(exported.path, tmp_path / "copy.ebseg"))
    path = copy / "graphs/fp32/adab_decoder.weights"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    result = ebseg("verify", copy, *options, folder=tmp_path)
    assert result.returncode == 1
    assert "sha256 of graphs/fp32/adab_decoder.weights differs" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_verify_hashes_only(exported: Bundle, tmp_path: Path) -> None:
    result = ebseg("verify", exported.path, "--hashes-only", folder=tmp_path)
    assert result.returncode == 0
    assert "are as they were written" in result.stdout
