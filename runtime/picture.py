"""Read a picture, of whatever kind, as eight-bit RGB.

EXIF rotation is applied. Transparent pictures are laid over white. Sixteen-bit values are scaled to eight bits.
Grey, palette and CMYK pictures become RGB as Pillow converts them; colour profiles are ignored, as they were when the
model was trained. Of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

if TYPE_CHECKING:
    from typing import TypeAlias

RGB = npt.NDArray[np.uint8]
PictureSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any]"

MAX_PICTURE_PIXELS = 1 << 27
"""134 million pixels (16384x8192): 400 MB as RGB. A 200-megapixel phone picture is above it, a bomb far above."""

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
"""What Pillow's readers raise on damaged files; the SyntaxError is its 'broken PNG file'."""

SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_picture(source: PictureSource, *, name: str | None = None, max_pixels: int | None = MAX_PICTURE_PIXELS) -> RGB:
    """Read a picture.

    Args:
        source: a file's path, a file's content, a Pillow image, or an array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) of uint8 or uint16 in the order RGB(A).
        name: what to call it in errors; the path by default.
        max_pixels: refuse more than these, before decoding; None for no limit but Pillow's own
            (`PIL.Image.MAX_IMAGE_PIXELS`, twice which Pillow refuses). Arrays are taken at any size.

    Returns:
        uint8 (H, W, 3), C-contiguous; the caller's own array if it is that already.

    Raises:
        InputError: no such file, an empty file, not a picture, a damaged one, too many pixels, or an array of another
            type or shape. Names the picture.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "given as an array")
    if isinstance(source, Image.Image):
        return _from_image(source, name or getattr(source, "filename", "") or "given as an image", max_pixels)
    if isinstance(source, bytes):
        return _from_bytes(source, name or "given as bytes", max_pixels)
    path = Path(source)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"picture {path}: no such file", cure="check the path") from None
    except OSError as error:
        raise InputError(f"picture {path}: {error.strerror}", cure="give a readable PNG or JPEG file") from error
    return _from_bytes(content, name or str(path), max_pixels)


def _from_bytes(content: bytes, name: str, max_pixels: int | None) -> RGB:
    if not content:
        raise InputError(f"picture {name}: 0 bytes", cure="give a PNG or JPEG file")
    try:
        with warnings.catch_warnings():
            # Pillow warns of half of what it refuses; our own limit decides.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                return _from_image(image, name, max_pixels)
    except UnidentifiedImageError:
        raise InputError(f"picture {name}: not a picture Pillow knows", cure="give a PNG or JPEG file") from None
    except Image.DecompressionBombError as error:
        # "Image size (… pixels) exceeds limit of … pixels, could be decompression bomb DOS attack."
        reason = str(error).partition(",")[0]
        raise InputError(
            f"picture {name}: {reason}",
            cure="shrink it first; in Python, raise PIL.Image.MAX_IMAGE_PIXELS and max_pixels",
        ) from error
    except DAMAGE as error:
        raise _damaged(name, error) from error


def _from_image(image: Image.Image, name: str, max_pixels: int | None) -> RGB:
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        raise InputError(
            f"picture {name}: {height}x{width} is {width * height / 1e6:.0f} million pixels, "
            f"the limit is {max_pixels / 1e6:.0f} million",
            cure="shrink it first; in Python, raise max_pixels",
        )
    if width < 1 or height < 1:
        raise InputError(f"picture {name}: {height}x{width} has no pixels", cure="give a PNG or JPEG file")
    try:
        image.load()
        return _from_array(np.asarray(_to_eight_bits(ImageOps.exif_transpose(image), name)), name)
    except DAMAGE as error:
        raise _damaged(name, error) from error
    except MemoryError:
        raise InputError(f"picture {name}: {height}x{width} does not fit in memory", cure="shrink it first") from None


def _damaged(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(f"picture {name}: damaged: {reason}", cure="copy or download it again")


def _to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """The picture in mode RGB, or in mode L when it is grey."""
    if image.mode in SIXTEEN_BIT_MODES:
        # "I" has 32 bits, but that is how older Pillow gives a 16-bit PNG. Pillow's own conversion would clip at 255.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"picture {name}: 32-bit values", cure="save it with 8 or 16 bits per channel")
        return Image.fromarray(_scale_sixteen_bits(values))
    if image.mode == "F":
        raise InputError(f"picture {name}: floating-point values", cure="save it with 8 or 16 bits per channel")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_array(array: npt.NDArray[Any], name: str) -> RGB:
    if array.dtype == np.uint16:
        array = _scale_sixteen_bits(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(
            f"picture {name}: {array.dtype} array of shape {array.shape}", cure="give uint8 or uint16 (H, W, 3), RGB"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    channels = array.shape[2]
    if channels == 1:
        array = np.broadcast_to(array, (*array.shape[:2], 3))
    elif channels == 4:
        alpha = array[:, :, 3:].astype(np.uint32)
        array = ((array[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    elif channels != 3:
        raise InputError(f"picture {name}: {channels} channels", cure="give 1 (grey), 3 (RGB) or 4 (RGBA)")
    return np.ascontiguousarray(array)


def _scale_sixteen_bits(values: npt.NDArray[Any]) -> RGB:
    """0..65535 to 0..255, rounded: 65535 is 255 · 257."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
