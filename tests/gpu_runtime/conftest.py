"""Engines for the fake TensorRT, and a device that must be left clean."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ebseg_deploy.runtime.device import RecordingDevice


@pytest.fixture(scope="session")
def engine_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with engines for the fake TensorRT; shared: do not change it."""
    from fake_tensorrt import write_engines

    folder = tmp_path_factory.mktemp("engines") / "tiny.ebseg"
    return write_engines(Path(shutil.copytree(tiny_bundle, folder)))


@pytest.fixture
def engine_bundle_copy(engine_bundle: Path, tmp_path: Path) -> Path:
    """Once more, to change or break."""
    return Path(shutil.copytree(engine_bundle, tmp_path / "copy.ebseg"))


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    """A recording device; the test fails if it leaves anything allocated."""
    made = RecordingDevice()
    yield made
    made.check_released()
