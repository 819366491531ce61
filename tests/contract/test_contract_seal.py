"""A bundle written before a field existed still opens: what a seal covers does not grow by itself."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from ebseg_deploy.contract import BundleManifest, ModelSpec, Size, graph_spec, seal_of
from ebseg_deploy.runtime.bundle import Bundle
from tiny_bundles import TINY_MODEL, write_tiny_bundle

FIRST_FIELDS = {
    "name", "queries", "embedding_dim", "clip_width", "clip_heads", "clip_patch", "clip_input_scale", "head_blocks",
    "sam_width", "context_length", "alpha", "beta", "gamma", "logit_scale",
}  # fmt: skip


def test_a_model_with_patches_of_16_is_written_as_ever() -> None:
    assert set(json.loads(msgspec.json.encode(TINY_MODEL))) == FIRST_FIELDS
    finer = msgspec.structs.replace(TINY_MODEL, sam_patch=8)
    assert set(json.loads(msgspec.json.encode(finer))) == {*FIRST_FIELDS, "sam_patch"}
    assert msgspec.json.decode(msgspec.json.encode(finer), type=ModelSpec) == finer


def test_finer_patches_make_larger_features() -> None:
    size = Size(height=64, width=96)
    finer = msgspec.structs.replace(TINY_MODEL, sam_patch=8)
    shapes = [graph_spec("sam_image_encoder", model, size).outputs[0].shape for model in (TINY_MODEL, finer)]
    assert shapes == [(1, 8, 4, 6), (1, 8, 8, 12)]


def test_the_seal_is_of_what_the_file_says(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "t.ebseg")
    written = json.loads((folder / "bundle.json").read_text())
    manifest = msgspec.convert(written, BundleManifest)
    assert seal_of(manifest) == written["seal"] == Bundle.open(folder).manifest.seal
    moved = msgspec.structs.replace(manifest, model=msgspec.structs.replace(manifest.model, sam_patch=8))
    assert seal_of(moved) != written["seal"]
