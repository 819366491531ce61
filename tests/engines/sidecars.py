"""Layers and sidecars as a builder would leave them, with what a test does not care about filled in."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from ebseg_deploy.contract import EngineSidecar, LayerRecord


def make_layer(type_: str | None, role: str, work: int | None, *nodes: str, **changes: object) -> LayerRecord:
    plain = {
        "name": "<unnamed>",
        "kind": "gemm",
        "role": role,
        "type": type_,
        "multiply_adds": work,
        "onnx_nodes": nodes,
        "tactic": "t&1",
    }
    return msgspec.convert(msgspec.to_builtins({**plain, **changes}), LayerRecord)


def make_sidecar(layers: Sequence[LayerRecord], **changes: object) -> EngineSidecar:
    plain = {
        "schema_version": 1,
        "plan": {"bytes": 4096, "sha256": "00"},
        "graph": "sam_image_encoder",
        "precision": "fp16",
        "size": {"height": 64, "width": 64},
        "model": "ebseg-tiny",
        "spec": {"inputs": [], "outputs": []},
        "source": {},
        "target": "tensorrt-rtx",
        "tensorrt_version": "1.7.1.116",
        "platform": "linux-x86_64",
        "settings": {
            "compute_capabilities": ["8.6"],
            "profile": {},
            "workspace_bytes": None,
            "tf32": False,
            "keep_fp32": [],
        },
        "memory": {"weights_bytes": 1, "activation_bytes": 2, "scratch_bytes": 3, "builder_peak_bytes": None},
        "layers": layers,
        "build_seconds": 1.0,
        "provenance": {},
    }
    return msgspec.convert(msgspec.to_builtins({**plain, **changes}), EngineSidecar)
