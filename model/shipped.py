"""Weights that come with the package."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .config import EbsegConfig

FOLDER = Path(__file__).parent / "weights"


def shipped_weights(config: EbsegConfig) -> Path:
    """The variant's own weights.

    Raises:
        InputError: none are shipped for it.
    """
    path = FOLDER / f"{config.name}.safetensors"
    if not path.is_file():
        raise InputError(
            f"model {config.name} has no weights of its own here",
            cure="give --checkpoint FILE, or --seeded for untrained weights",
        )
    return path
