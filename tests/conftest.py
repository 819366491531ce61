"""What every room's tests may ask for."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from ebseg_deploy.model.ebseg import EBSeg


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would the programs that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or fills the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("EBSEG_CACHE")
    os.environ["EBSEG_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["EBSEG_CACHE"]
    else:
        os.environ["EBSEG_CACHE"] = before


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid bundle with tiny graphs, sizes 64x64 and 64x96; shared: do not change it."""
    pytest.importorskip("onnx")
    from tiny_bundles import write_tiny_bundle

    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny.ebseg")


@pytest.fixture
def tiny_bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle once more, to change or break."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy.ebseg"))


@pytest.fixture
def make_tiny_bundle(tmp_path: Path) -> Callable[..., Path]:
    """make_tiny_bundle("name", seed=1, …) -> folder; keywords as `tiny_bundles.write_tiny_bundle`."""
    pytest.importorskip("onnx")
    from tiny_bundles import write_tiny_bundle

    return lambda name="other.ebseg", **changes: write_tiny_bundle(tmp_path / name, **changes)


@pytest.fixture(scope="session")
def picture_pixels() -> np.ndarray:
    """A picture of coloured blocks, uint8 (60, 90, 3): each 20-pixel block one colour, so tiny graphs see regions."""
    colours = np.random.default_rng(7).integers(0, 256, size=(3, 5, 3), dtype=np.uint8)
    return np.ascontiguousarray(colours.repeat(20, axis=0).repeat(18, axis=1))


@pytest.fixture
def picture(picture_pixels: np.ndarray, tmp_path: Path) -> Path:
    """The coloured blocks as a PNG file."""
    path = tmp_path / "blocks.png"
    Image.fromarray(picture_pixels).save(path)
    return path


@pytest.fixture(scope="session")
def seeded_b() -> EBSeg:
    """EBSeg-B with seeded weights: 1 GB and 8 s, so made once; do not change it."""
    from ebseg_deploy.model.config import EBSEG_B
    from ebseg_deploy.model.seeded import seeded_model

    return seeded_model(EBSEG_B)
