"""Bundles of tiny variants, exported for real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ebseg_deploy.contract import Size
from ebseg_deploy.export.bundle_writer import ExportConfig, export_bundle
from ebseg_deploy.runtime.bundle import Bundle
from tiny_models import tiny_model

SIZES = (Size(height=64, width=96), Size(height=96, width=96))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small lose more by sharing than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """tiny-b at two sizes for batches of 2; shared: do not change it."""
    return export_bundle(
        tiny_model("tiny-b"),
        tmp_path_factory.mktemp("exported") / "tiny-b.ebseg",
        ExportConfig(sizes=SIZES, batch=2, threads=1),
        provenance={"weights": "seeded"},
    )
