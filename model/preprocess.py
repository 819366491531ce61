"""From a uint8 canvas to the normalised, zero-padded picture both encoders take."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..contract import Size

CLIP_MEAN = (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255)
CLIP_STD = (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255)
SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)


class Normalise(nn.Module):
    """Normalise, then zero what lies right of and below the picture.

    The reference pads *after* normalising, so the padding is 0 and not a black pixel's value; there is no padding
    mask further on.
    """

    mean: Tensor
    std: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, size: Size, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)
        rows, columns = torch.arange(size.height).float(), torch.arange(size.width).float()
        self.register_buffer("rows", rows.reshape(1, 1, -1, 1), persistent=False)
        self.register_buffer("columns", columns.reshape(1, 1, 1, -1), persistent=False)

    def forward(self, image: Tensor, valid_size: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 and (B, 2) int32 -> (B, 3, H, W) float32."""
        valid = valid_size.float().reshape(-1, 2, 1, 1, 1)
        inside = (self.rows < valid[:, 0]).float() * (self.columns < valid[:, 1]).float()
        return (image.float() - self.mean) / self.std * inside
