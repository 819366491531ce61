"""Weights from a recipe: the same numbers on every machine, from the names and shapes alone.

They make a model that segments nothing sensible but exercises every path: sparse ReLUs keep the queries apart, the
attention bias reaches ±50, some masks are empty, and the logit scale exceeds its clamp. Used by tests, by benchmarks,
and by the demo until a trained model is given. A tensor is mean + std · z, z from numpy's frozen legacy generator
seeded with the CRC-32 of its key, so the stream depends on no library version.
"""

from __future__ import annotations

import math
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from .checkpoint import model_from_state
from .config import EbsegConfig
from .ebseg import EBSeg

_TEXT = "ov_classifier."
_PREDICTOR = "sem_seg_head.predictor."
_TRUNK = "clip_visual_extractor."

_CONSTANTS: dict[str, float] = {
    _TEXT + "logit_scale": math.log(100.0),
    _PREDICTOR + "logit_scale": 12.0,  # above the clamp at 10
    _PREDICTOR + "bias_scaling.weight": 5.0,
    _PREDICTOR + "bias_scaling.bias": 0.25,
}
_FIRST_CHANNEL: dict[str, float] = {  # one constant channel makes most mask logits negative
    "sem_seg_head.pixel_decoder.mask_features.bias": 4.0,
    _PREDICTOR + "mask_embed.layers.2.bias": -2.5,
}
_BEFORE_ACTIVATION = (
    "c_fc",
    "lin1",
    "linear1",
    "mask_embed.layers.0",
    "mask_embed.layers.1",
    "mask_embed1.layers.0",
    "mask_embed1.layers.1",
    "attn_proj.layers.0",
    "attn_proj.layers.1",
    "layer_1",
)


def seeded_tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array of that key and shape."""
    if key in _CONSTANTS:
        return np.full(shape, _CONSTANTS[key], np.float32)
    if key == _TEXT + "attn_mask":
        return np.triu(np.full(shape, -np.inf, np.float32), 1)
    if key == "criterion.empty_weight":
        weight = np.ones(shape, np.float32)
        weight[-1] = 0.1
        return weight
    mean, std = _distribution(key, shape)
    z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    array: np.ndarray = (mean + std * z).astype(np.float32)
    if key in _FIRST_CHANNEL:
        array[0] = _FIRST_CHANNEL[key]
    return array


def seeded_model(config: EbsegConfig) -> EBSeg:
    """The variant with seeded weights (B: about 8 s on two cores)."""
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in EBSeg(config).state_dict().items()}
    largest_first = sorted(shapes, key=lambda key: -math.prod(shapes[key]))
    with ThreadPoolExecutor() as pool:  # the generator releases the GIL
        arrays = pool.map(lambda key: seeded_tensor(key, shapes[key]), largest_first)
        state = {key: torch.from_numpy(array) for key, array in zip(largest_first, arrays, strict=True)}
    return model_from_state(state, config, source="seeded weights")


def _distribution(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a key."""
    name = key.rsplit(".", 1)[-1]
    inputs = math.prod(shape[1:])
    special = _special(key, name, shape, inputs)
    if special is not None:
        return special
    before_activation = key.rsplit(".", 1)[0].endswith(_BEFORE_ACTIVATION)
    if len(shape) == 1 and name == "weight":  # a norm's scale
        return 1.0, 0.1
    if name in ("bias", "in_proj_bias"):
        if before_activation and key.startswith(_PREDICTOR):  # sparse ReLUs keep the queries apart
            return (-1.2 if ".mask_embed1." in key else -0.6), 0.05
        return 0.0, 0.05
    if len(shape) < 2:
        raise KeyError(f"no recipe for {key} {shape}")
    return 0.0, _gain(key, before_activation) * inputs**-0.5


def _special(key: str, name: str, shape: tuple[int, ...], inputs: int) -> tuple[float, float] | None:
    """Embeddings, positions and layers whose outputs are not unit-sized features."""
    if key in (_TEXT + "text_projection",) or (key.endswith(".proj") and len(shape) == 2):
        return 0.0, shape[0] ** -0.5
    stds = {
        _TEXT + "bg_embed": shape[-1] ** -0.5 if shape else 0.0,
        _TEXT + "token_embedding.weight": 0.5,
        _TEXT + "positional_embedding": 0.1,
        _TRUNK + "class_embedding": 0.15,
        _TRUNK + "positional_embedding": 0.5,
        "backbone.pos_embed": 0.5,
    }
    if key in stds:
        return 0.0, stds[key]
    if name in ("rel_pos_h", "rel_pos_w"):
        return 0.0, 0.15
    if key.endswith(("query_feat.weight", "query_embed.weight")):
        return 0.0, 1.0
    if key.endswith(("level_embed", "level_embed.weight")):
        return 0.0, 0.3
    if "sampling_offsets" in key:
        return 0.0, 2.0 if name == "bias" else 0.5 * inputs**-0.5
    if key.startswith(_PREDICTOR + "mask_embed.layers.2."):
        return 0.0, 0.02 if name == "bias" else 2.0 * inputs**-0.5
    return None


def _gain(key: str, before_activation: bool) -> float:
    """Factor on 1/√inputs of a linear or convolution weight."""
    if key.startswith(_PREDICTOR) and key.endswith(("out_proj.weight", "linear2.weight")):
        return 0.2
    if key.startswith("clip_rec_head.") and key.endswith("attn.proj.weight"):
        return 3.0
    if key.startswith(_TRUNK) and key.endswith(("out_proj.weight", "attn.proj.weight", "c_proj.weight")):
        return 0.5
    if key.startswith(_TEXT + "transformer.") and key.endswith("out_proj.weight"):
        return 3.0
    if key.startswith(_TEXT + "transformer.") and key.endswith("in_proj_weight"):
        return 1.7
    return 1.4 if before_activation else 1.0
