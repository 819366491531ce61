"""Pictures of every kind, and files that are none."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ebseg_deploy.errors import InputError
from ebseg_deploy.runtime.picture import MAX_PICTURE_PIXELS, read_picture
from PIL import Image

RED, GREEN = (200, 30, 40), (10, 180, 60)


@pytest.fixture
def pixels() -> np.ndarray:
    """Red left half, green right half, 6 rows and 8 columns."""
    array = np.empty((6, 8, 3), dtype=np.uint8)
    array[:, :4], array[:, 4:] = RED, GREEN
    return array


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def empty_png(height: int, width: int) -> bytes:
    """A PNG that claims a size; its pixels are missing, so only the header can have been read."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("kind", ["path", "string", "bytes", "image", "array"])
def test_every_source_gives_the_same_pixels(pixels: np.ndarray, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    sources = {
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "image": Image.open(path),
        "array": pixels,
    }
    found = read_picture(sources[kind])
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_lossless_formats(pixels: np.ndarray, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(read_picture(encoded(Image.fromarray(pixels), kind, **options)), pixels)


def test_jpeg_is_close(pixels: np.ndarray) -> None:
    found = read_picture(encoded(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0))
    assert np.abs(found.astype(int) - pixels).max() <= 6


def test_transparency_is_laid_over_white(pixels: np.ndarray) -> None:
    alpha = np.full((6, 8, 1), 255, dtype=np.uint8)
    alpha[:3] = 0
    alpha[3] = 102  # two fifths
    found = read_picture(encoded(Image.fromarray(np.concatenate([pixels, alpha], axis=2))))
    assert (found[:3] == 255).all()
    np.testing.assert_array_equal(found[4:], pixels[4:])
    np.testing.assert_allclose(found[3, 0], 0.4 * np.array(RED) + 0.6 * 255, atol=1)
    as_array = read_picture(np.concatenate([pixels, alpha], axis=2))
    assert np.abs(as_array.astype(int) - found).max() <= 1


def test_grey_with_alpha() -> None:
    image = Image.merge("LA", [Image.new("L", (4, 4), 90), Image.new("L", (4, 4), 0)])
    assert (read_picture(encoded(image)) == 255).all()


def test_palette(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels).quantize(4)
    assert image.mode == "P"
    np.testing.assert_array_equal(read_picture(encoded(image)), pixels)


def test_palette_with_a_transparent_colour(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels).quantize(4)
    red = int(np.asarray(image)[0, 0])
    found = read_picture(encoded(image, transparency=red))
    assert (found[:, :4] == 255).all()
    np.testing.assert_array_equal(found[:, 4:], pixels[:, 4:])


def test_grey_and_bilevel() -> None:
    assert (read_picture(encoded(Image.new("L", (5, 3), 77))) == 77).all()
    assert read_picture(encoded(Image.new("1", (5, 3), 1))).shape == (3, 5, 3)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    wanted = [[0, 1, 128, 255]]
    np.testing.assert_array_equal(read_picture(encoded(Image.fromarray(values)))[:, :, 0], wanted)
    np.testing.assert_array_equal(read_picture(values)[:, :, 2], wanted)
    older = Image.fromarray(values.astype(np.int32))  # mode "I": how Pillow below 11 reads a 16-bit PNG
    np.testing.assert_array_equal(read_picture(older)[:, :, 1], wanted)


def test_cmyk(pixels: np.ndarray) -> None:
    found = read_picture(encoded(Image.fromarray(pixels).convert("CMYK"), "TIFF"))
    np.testing.assert_allclose(found, pixels, atol=2)
    assert read_picture(encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG")).shape == (6, 8, 3)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (8, 1), (3, 2), (6, 3)])
def test_exif_rotation_is_applied(pixels: np.ndarray, orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    np.testing.assert_array_equal(read_picture(content), np.rot90(pixels, turns))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    found = read_picture(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (found == (255, 0, 0)).all()


def test_one_pixel() -> None:
    np.testing.assert_array_equal(read_picture(encoded(Image.new("RGB", (1, 1), RED))), [[RED]])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "0 bytes"), (b"%PDF-1.7 not a picture", "not a picture"), (b"\x89PNG\r\n\x1a\n", "damaged|not a picture")],
)
def test_not_a_picture(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"picture {path}: ({message})") as caught:
        read_picture(path)
    assert caught.value.cure
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_truncated(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"picture {path}: (damaged|not a picture)"):
        read_picture(path)


def test_every_truncation_of_a_png_is_an_input_error(pixels: np.ndarray) -> None:
    content = encoded(Image.fromarray(pixels))
    for length in range(len(content) - 12):  # the last chunk, IEND, holds no pixels
        try:
            found = read_picture(content[:length])
        except InputError:
            continue
        np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("side", [20000, 12000, 60000])
def test_huge_pictures_are_refused_before_decoding(side: int) -> None:
    with pytest.raises(InputError, match="pixels") as caught:
        read_picture(empty_png(side, side), name="bomb.png")
    assert "bomb.png" in str(caught.value)
    assert "shrink it first" in str(caught.value)
    assert ".;" not in str(caught.value)


def test_limit_can_be_changed(pixels: np.ndarray) -> None:
    content = encoded(Image.fromarray(pixels))
    with pytest.raises(InputError, match="6x8 is 0 million pixels, the limit is 0 million"):
        read_picture(content, max_pixels=47)
    assert read_picture(content, max_pixels=48).shape == (6, 8, 3)
    with pytest.raises(InputError, match="damaged"):  # passes the limit, and is decoded: its pixels are missing
        read_picture(empty_png(12000, 12000), max_pixels=None)
    assert MAX_PICTURE_PIXELS < 20000 * 20000


def test_no_warning_below_the_limit(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(InputError, match="damaged"):  # 100 million pixels: Pillow alone would warn
        read_picture(empty_png(10000, 10000))
    assert not recwarn.list


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.png: no such file; check the path"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(InputError, match="Is a directory"):
        read_picture(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), dtype=np.float32),
        np.zeros((4, 4, 2), dtype=np.uint8),
        np.zeros((4, 4, 3, 1), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        np.zeros(4, dtype=np.uint8),
    ],
)
def test_unusable_arrays(array: np.ndarray) -> None:
    with pytest.raises(InputError, match="given as an array"):
        read_picture(array)


def test_values_that_have_no_scale() -> None:
    with pytest.raises(InputError, match="floating-point"):
        read_picture(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))
    with pytest.raises(InputError, match="32-bit"):
        read_picture(encoded(Image.new("I", (4, 4), 70000), "TIFF"))
