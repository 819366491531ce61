"""The picture every graph is checked on: the same bytes on every machine, made of edges, gradients and texture."""

from __future__ import annotations

import numpy as np

from ..contract import ModelSpec, Size

CLASSES = 7
PROMPTS = ("a photo of a cat.", "There is the red fox in the scene.", "a close-up photo of a dining table.")


def reference_inputs(size: Size, batch: int) -> dict[str, np.ndarray]:
    """Inputs of the image encoders.

    The picture leaves an eighth of the canvas free below and on the right, filled with noise, which a graph must
    ignore: the zero padding is its own business.
    """
    random = np.random.default_rng(20240617)
    rows, columns = np.mgrid[0 : size.height, 0 : size.width]
    waves = [
        127.5 + 127.5 * np.sin(rows / (7 + 9 * c) + columns / (23 - 5 * c) + c) * np.cos(columns / (31 + 4 * c))
        for c in range(3)
    ]
    picture = np.stack(waves)
    for _ in range(24):
        top, left = random.integers(0, size.height), random.integers(0, size.width)
        height, width = random.integers(8, size.height // 2), random.integers(8, size.width // 2)
        picture[:, top : top + height, left : left + width] = random.integers(0, 256, (3, 1, 1))
    picture += random.normal(0, 6, picture.shape)
    valid = (size.height - size.height // 8, size.width - size.width // 8)
    picture[:, valid[0] :] = random.integers(0, 256, picture[:, valid[0] :].shape)
    picture[:, :, valid[1] :] = random.integers(0, 256, picture[:, :, valid[1] :].shape)
    image = picture.clip(0, 255).astype(np.uint8)
    # Another picture per batch entry, so that a graph which mixes pictures is found out.
    images = np.stack([np.roll(image, 37 * i, axis=2) for i in range(batch)])
    return {"image": images, "valid_size": np.tile(np.array(valid, np.int32), (batch, 1))}


def reference_text(model: ModelSpec) -> dict[str, np.ndarray]:
    """Text inputs of the head: unit rows, background last, and flags with both values."""
    random = np.random.default_rng(7)
    rows = random.normal(size=(CLASSES + 1, model.embedding_dim)).astype(np.float32)
    seen = (np.arange(CLASSES) % 2).astype(np.float32)
    return {"text_embeddings": rows / np.linalg.norm(rows, axis=1, keepdims=True), "seen": seen}
