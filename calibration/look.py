"""Whether two pictures are the same, to the pixel or to the eye."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from ..runtime.picture import RGB

SIDE = 16
"""Cells per side: 16 x 16 differences make 256 bits."""

NEAR_BITS = 40
"""Bits of 256 that may differ between two copies of a picture. Measured on emoji scenes: JPEG of quality 50, or half or
twice the size, changes at most 30; two scenes differ in 88 or more, of 30,720 pairs, and in 126 in the middle."""

FLAT_CONTRAST = 4.0
"""Standard deviation of brightness, of 255, below which a picture is too flat to have a look of its own."""


def content_hash(pixels: RGB) -> str:
    """The sha256 of a picture's size and pixels: the same for any lossless file of it."""
    digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def look_of(pixels: RGB) -> str:
    """256 bits, as 64 hexadecimal digits: whether brightness rises from each cell of the shrunk picture to the next.

    They hardly change when a picture is resized, compressed or made brighter. A flat picture gives "".

    Source: Krawetz, 'Kind of like that' (2013), the difference hash.
    """
    grey = Image.fromarray(pixels).convert("L")
    small = np.asarray(grey.resize((SIDE + 1, SIDE), Image.Resampling.BOX), np.int16)
    if np.std(small) < FLAT_CONTRAST:
        return ""
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def bits_apart(first: str, second: str) -> int:
    """In how many bits two looks differ."""
    return (int(first, 16) ^ int(second, 16)).bit_count()
