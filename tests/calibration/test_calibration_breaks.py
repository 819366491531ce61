"""A killed calibration goes on, and EBSeg-B's fits in memory; both in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
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


def start(bundle: Path, images: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    words = ["calibrate", str(bundle), "--images", str(images), "--limit", "1000", "-o", str(output), *more]
    return subprocess.Popen(
        [sys.executable, "-m", "ebseg_deploy", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_goes_on_with_the_same_result(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    images = photos(tmp_path / "photos", 200, 32)
    kept = tmp_path / "cache" / "calibration"
    process = start(tiny_bundle, images, tmp_path / "a.json")
    while process.poll() is None and not list(kept.glob("*.npz")):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "a.json").exists()

    again = start(tiny_bundle, images, tmp_path / "a.json")
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert "of 200 runs were counted before" in said
    whole = start(tiny_bundle, images, tmp_path / "b.json", "--no-cache")
    whole.communicate()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


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
    words = ["calibrate", bundle.path, "--images", photos(tmp_path / "photos", 3, 640), "-o", tmp_path / "r.json"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, words), "--no-cache"], capture_output=True, text=True, check=True
    )
    peak_kib = int(done.stdout.split()[-1])
    assert 1 << 20 < peak_kib < 4 << 20  # 2.6 GiB measured
