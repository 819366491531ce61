"""`ebseg export` as a user meets it: refusals, exit codes, and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from ebseg_deploy.cli import ebseg as root

EBSEG = [sys.executable, "-m", "ebseg_deploy"]


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
    traced = ".nano.ebseg.partial-*/graphs/fp32/clip_image_encoder.weights"
    while not list(tmp_path.glob(traced)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.glob(traced)), "the export did not begin"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    # An interrupt inside code that torch made with exec() ends Python by the signal itself: 130 to every shell.
    assert process.returncode in (130, -signal.SIGINT), errors
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    assert output == ""
    assert [path.name for path in tmp_path.iterdir()] == ["nano.ebseg"]
    assert (old / "bundle.json").read_text() == "the old one"
