"""A killed calibration goes on, and EBSeg-B's fits in memory; both in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.contract import Size
from PIL import Image


def photos(folder: Path, count: int, side: int) -> Path:
    folder.mkdir()
    for index, pixels in enumerate(np.random.default_rng(5).integers(0, 256, (count, side, side, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{index:03}.bmp")
    return folder


KILLED = """
import os, signal
from ebseg_deploy.cli import main

replace, calls = os.replace, []

def killed(*names):
    calls.append(names)
    if len(calls) == 4:  # the file is written, and has not its name yet
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)

os.replace = killed
main()
"""


def run(program: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, "calibrate", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_goes_on_with_the_same_result(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "r.json"
    words = (tiny_bundle, "--images", photos(tmp_path / "photos", 40, 32), "--graph", "adab_decoder", "-o", output)
    dead = run(KILLED, *words)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert not output.exists()

    plain = "from ebseg_deploy.cli import main; main()"
    resumed = run(plain, *words)
    assert resumed.returncode == 0, resumed.stderr
    assert "24 of 40 runs were counted before" in resumed.stderr  # 3 times 8 were saved
    found = output.read_bytes()
    assert run(plain, *words, "--no-cache").returncode == 0
    assert output.read_bytes() == found


PEAK = """
import atexit, re, sys
from pathlib import Path
from ebseg_deploy.cli import main

# Not the parent's view: that counts what the parent itself held at the fork.
atexit.register(lambda: print("peak", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to know the peak")
def test_ebseg_b_at_640_stays_below_4_gib(seeded_b: object, tmp_path: Path) -> None:
    from ebseg_deploy.export.bundle_writer import ExportConfig, export_bundle

    config = ExportConfig(sizes=(Size(height=640, width=640),))
    bundle = export_bundle(seeded_b, tmp_path / "b.ebseg", config, provenance={"weights": "seeded"})  # type: ignore[arg-type]
    images = photos(tmp_path / "photos", 3, 640)
    done = run(PEAK, bundle.path, "--images", images, "-o", tmp_path / "r.json", "--no-cache")
    assert done.returncode == 0, done.stderr
    peak_kib = int(done.stdout.split()[-1])
    assert 1 << 20 < peak_kib < 4 << 20  # 2.6 GiB measured
