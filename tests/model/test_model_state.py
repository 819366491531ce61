"""The state dict is the published checkpoints': every key and shape. And the seeded weights are the recipe's."""

from __future__ import annotations

import json
import zlib
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from ebseg_deploy.contract import Size
from ebseg_deploy.errors import InputError
from ebseg_deploy.model.checkpoint import ALIASES, published_state
from ebseg_deploy.model.config import EBSEG_B, EBSEG_L, EBSEG_NANO, EbsegConfig, config_named
from ebseg_deploy.model.ebseg import EBSeg
from ebseg_deploy.model.seeded import seeded_tensor
from golden_files import FOLDER
from tiny_models import TINY_B, tiny_model


@cache
def manifest(letter: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"manifest_{letter}.json").read_text())


def empty_model(config: EbsegConfig) -> EBSeg:
    with torch.device("meta"):
        return EBSeg(config)


@pytest.mark.parametrize(
    ("config", "letter", "tensors", "values"),
    [(EBSEG_B, "b", 800, 261_835_673), (EBSEG_L, "l", 944, 541_079_705)],
    ids=["b", "l"],
)
def test_published_keys_and_shapes(config: EbsegConfig, letter: str, tensors: int, values: int) -> None:
    state = published_state(empty_model(config))
    assert {key: list(tensor.shape) for key, tensor in state.items()} == {
        key: entry["shape"] for key, entry in manifest(letter)["tensors"].items()
    }
    assert len(state) == tensors
    assert sum(tensor.numel() for key, tensor in state.items() if key not in ALIASES) == values


@pytest.mark.parametrize("letter", ["b", "l"])
def test_published_aliases(letter: str) -> None:
    assert manifest(letter)["aliases"] == ALIASES


@pytest.mark.parametrize(
    ("key", "shape", "crc"),
    [
        ("criterion.empty_weight", (172,), "fa86fa03"),
        ("ov_classifier.attn_mask", (77, 77), "d21c76cc"),
        ("ov_classifier.bg_embed", (1, 512), "406b8866"),
        ("clip_visual_extractor.class_embedding", (1024,), "a1c2ca5a"),
        ("clip_visual_extractor.resblocks.0.attn.in_proj_bias", (2304,), "5b7e65d8"),
        ("backbone.blocks.2.attn.rel_pos_h", (127, 64), "c1972528"),
        ("sem_seg_head.pixel_decoder.mask_features.bias", (256,), "c38ab09e"),
        ("sem_seg_head.predictor.mask_embed.layers.2.weight", (256, 256), "9e18766a"),
        ("sem_seg_head.predictor.attn_proj.layers.0.bias", (256,), "8f9b7cf7"),
        ("sem_seg_head.predictor.bias_scaling.weight", (1, 1), "f99f2265"),
    ],
)
def test_seeded_tensor_is_the_recipe(key: str, shape: tuple[int, ...], crc: str) -> None:
    tensor = seeded_tensor(key, shape)
    assert tensor.dtype == np.float32
    assert f"{zlib.crc32(tensor.astype('<f4').tobytes()):08x}" == crc


def test_seeded_b_has_the_goldens_checksum(seeded_b: EBSeg) -> None:
    """CRC-32 over all canonical tensors in the order of their names, as the goldens' maker took it."""
    crc = 0
    for _, tensor in sorted(seeded_b.state_dict().items()):
        crc = zlib.crc32(np.ascontiguousarray(tensor.numpy(), "<f4").data, crc)
    assert f"{crc:08x}" == "33ae8cb3"


def test_unknown_key_has_no_recipe() -> None:
    with pytest.raises(KeyError, match="no recipe for surprise"):
        seeded_tensor("surprise", (3,))


def test_seeded_model_holds_its_tensors() -> None:
    for key, tensor in tiny_model("tiny-b").state_dict().items():
        if key != "sem_seg_head.pixel_decoder.mask_features.bias":  # the tiny variants' own
            np.testing.assert_array_equal(tensor.numpy(), seeded_tensor(key, tuple(tensor.shape)), err_msg=key)


@pytest.mark.parametrize("config", [EBSEG_B, EBSEG_L, EBSEG_NANO], ids=lambda config: config.name)
def test_variants_by_name(config: EbsegConfig) -> None:
    assert config_named(config.name) is config


def test_unknown_variant() -> None:
    with pytest.raises(InputError, match="model 'ebseg-xl' is not known; choose one of ebseg-b, ebseg-l, ebseg-nano"):
        config_named("ebseg-xl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plain_blocks": 3, "surgery_blocks": 3}, "leave no head block"),
        ({"fusion_layers": (2, 3, 7)}, "fusion_layers"),
        ({"mask_dim": 16}, "mask_dim 16 must equal hidden_dim 32"),
    ],
)
def test_config_that_cannot_be(change: dict[str, Any], message: str) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match=message):
        replace(TINY_B, **change)


@pytest.mark.parametrize("size", [(48, 64), (64, 0), (0, 0), (33, 32)])
def test_canvas_that_is_no_multiple_of_32(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="sides must be positive multiples of 32"):
        tiny_model("tiny-b").graphs(Size(height=size[0], width=size[1]))


def test_numbers_for_the_host() -> None:
    spec = tiny_model("tiny-b").spec
    assert spec.logit_scale == pytest.approx(100.0, rel=1e-6)
    assert (spec.head_blocks, spec.queries, spec.embedding_dim) == (2, 12, 24)
    assert EBSEG_B.spec(logit_scale=1.0).clip_grid(Size(height=640, width=640)) == (20, 20)
    assert EBSEG_L.spec(logit_scale=1.0).clip_grid(Size(height=640, width=864)) == (32, 43)
