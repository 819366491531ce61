"""Graphs of tiny variants, traced one by one: a whole bundle would take longer than all other tests here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import onnx_ir as ir
import pytest


@pytest.fixture(scope="session")
def traced() -> Callable[..., ir.Model]:
    """traced("tiny-b", "sam_image_encoder", batch=1) -> an FP32 graph for 64x96, yours to change."""
    pytest.importorskip("torch")
    import torch
    from ebseg_deploy.contract import Size
    from ebseg_deploy.export.graphs import exportable_graphs
    from ebseg_deploy.export.trace import trace
    from tiny_models import tiny_model

    @cache
    def make(model: str, name: str, batch: int | str) -> ir.Model:
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # matrices this small lose more by sharing than they win
        try:
            size = Size(height=64, width=96)
            graphs = exportable_graphs(tiny_model(model), (size,), batch)
            return trace(next(each for each in graphs if each.name == name))
        finally:
            torch.set_num_threads(before)

    return lambda model, name, batch=1: make(model, name, batch).clone()
