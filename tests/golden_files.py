"""The goldens: what the published code gave for seeded EBSeg-B weights, thinned out to a few megabytes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tolerances import GOLDEN, UNSURE_ROWS
from torch import Tensor

FOLDER = Path(__file__).parent / "goldens"

STRIDES = {
    "clip_in_s": (1, 20, 20),
    "sam_in_s": (1, 40, 40),
    "clip_feat3_s": (1, 5, 5),
    "clip_feat6_s": (1, 5, 5),
    "clip_feat9_s": (1, 5, 5),
    "last_surgery_s": (20, 1),
    "cls_first": (1,),
    "clip_final_feature_s": (1, 4, 4),
    "sam_res2_s": (1, 20, 20),
    "sam_res3_s": (1, 10, 10),
    "sam_res4_s": (1, 5, 5),
    "sam_res5_s": (1, 2, 2),
    "pixel_memory_s": (100, 1),
    "mask_features_s": (1, 16, 16),
    "pred_masks_l0_s": (10, 16, 16),
    "pred_masks_l4_s": (10, 16, 16),
    "pred_masks_s": (1, 8, 8),
    "mask_embeds_l0": (10, 1),
    "mask_embeds_l4": (10, 1),
    "mask_embeds": (1, 1),
    "attn_bias_s": (1, 10, 16, 16),
    "mask_embeds_clip": (1, 1),
    "mask_logits": (1, 1),
    "mask_logits_clip": (1, 1),
    "sem_seg_s": (1, 16, 16),
}
"""Every how many-th element of each axis a golden keeps; predictions 0 and 4 keep every tenth query too."""


@cache
def golden(size: str) -> dict[str, npt.NDArray[np.generic]]:
    """All arrays of one golden file, "480x640" or "640x640"."""
    with np.load(FOLDER / f"golden_b_{size}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    # The surgery stream's CLS, its row 0, is read by nobody, and the restructured model does not make it.
    arrays["last_surgery_s"] = arrays["last_surgery_s"][1:]
    return arrays


def thinned(name: str, full: Tensor) -> Tensor:
    """The elements of a whole tensor that its golden keeps; no memory of the rest is held.

    Of the surgery stream, `full` is the patches' rows: the golden's are tokens 20, 40, …, CLS being token 0.
    """
    if name == "last_surgery_s":
        full = full[STRIDES[name][0] - 1 :]
    return full[tuple(slice(None, None, stride) for stride in STRIDES[name])].clone()


def golden_inputs(size: str) -> tuple[Tensor, Tensor, Tensor]:
    """Picture (3, H, W) uint8, text embeddings (21, 512) with the background last, seen flags (20,)."""
    arrays = golden(size)
    picture = torch.from_numpy(arrays["image"]).permute(2, 0, 1).contiguous()
    return picture, torch.from_numpy(arrays["text_weight"]), torch.from_numpy(arrays["overlap"]).float()


def assert_near(name: str, got: Tensor, expected: Tensor) -> None:
    """Hold a tensor against its golden, row by row where the table of tolerances says so."""
    limit = GOLDEN[name]
    assert got.shape == expected.shape
    worst = (got - expected).abs().flatten(1 if limit.unsure_rows else 0)
    if limit.unsure_rows:
        rows = worst.amax(dim=1).sort().values
        assert float(rows[-1]) <= limit.unsure_rows, f"{name}: worst row"
        worst = rows[:-UNSURE_ROWS]
    assert float(worst.max()) <= limit.largest, name  # NaN fails too


def coarse_margin(differs: npt.NDArray[np.bool_], size: str) -> float:
    """The greatest golden margin (best score minus second best) near the pixels that differ.

    The margin is kept for every fourth pixel of each axis; of those around a pixel, the least counts.
    """
    kept = golden(size)["margin_s"].astype(np.float32)
    padded = np.pad(kept, 1, mode="edge")
    least = np.min([padded[i : i + kept.shape[0], j : j + kept.shape[1]] for i in range(3) for j in range(3)], axis=0)
    return float(least.repeat(4, axis=0).repeat(4, axis=1)[differs].max(initial=0.0))
