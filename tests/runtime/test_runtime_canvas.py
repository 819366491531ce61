"""Which canvas a picture goes on, at which size, and with which pixels."""

from __future__ import annotations

import numpy as np
import pytest
from ebseg_deploy.contract import Size
from ebseg_deploy.errors import InputError
from ebseg_deploy.runtime.canvas import Placement, choose_canvas, fitted_size, place_picture, reference_size
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image


def size(text: str) -> Size:
    height, width = map(int, text.split("x"))
    return Size(height=height, width=width)


def placed(height: int, width: int, *canvases: str, resize: str = "fit") -> tuple[str, tuple[int, int]]:
    placement = choose_canvas(height, width, [size(each) for each in canvases], resize)
    return str(placement.canvas), placement.valid_size


@pytest.mark.parametrize(
    ("picture", "canvas", "valid"),
    [
        ((480, 640), "640x640", (480, 640)),
        ((480, 640), "640x864", (640, 853)),
        ((640, 480), "864x640", (853, 640)),
        ((480, 640), "480x640", (480, 640)),
        ((3000, 4000), "640x640", (480, 640)),
        ((1, 1), "640x640", (640, 640)),
        ((1, 20000), "640x640", (1, 640)),
        ((375, 500), "640x640", (480, 640)),
        ((333, 500), "640x640", (426, 640)),
        ((100, 1000), "640x2560", (256, 2560)),
    ],
)
def test_largest_that_fits(picture: tuple[int, int], canvas: str, valid: tuple[int, int]) -> None:
    assert fitted_size(*picture, size(canvas)) == valid


@pytest.mark.parametrize(
    ("picture", "wanted"),
    [
        ((480, 640), (640, 853)),
        ((375, 500), (640, 853)),
        ((500, 333), (961, 640)),
        ((640, 640), (640, 640)),
        ((512, 683), (640, 854)),
        ((100, 1000), (256, 2560)),
        ((3, 7), (640, 1493)),
    ],
)
def test_reference_size(picture: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert reference_size(*picture) == wanted


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_reference_canvas_takes_the_reference_size(height: int, width: int) -> None:
    wanted = reference_size(height, width)
    canvas = Size(height=-(-wanted[0] // 32) * 32, width=-(-wanted[1] // 32) * 32)
    if min(canvas.height, canvas.width) == 640:  # thinner pictures end with a shorter side below 640
        assert fitted_size(height, width, canvas) == wanted


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 40), st.integers(1, 40))
def test_fit_keeps_the_aspect_and_touches_two_sides(height: int, width: int, rows: int, columns: int) -> None:
    canvas = Size(height=32 * rows, width=32 * columns)
    valid = fitted_size(height, width, canvas)
    assert 1 <= valid[0] <= canvas.height
    assert 1 <= valid[1] <= canvas.width
    assert valid[0] == canvas.height or valid[1] == canvas.width
    scale = min(canvas.height / height, canvas.width / width)
    assert abs(valid[0] - max(height * scale, 1)) <= 0.5 + 1e-6
    assert abs(valid[1] - max(width * scale, 1)) <= 0.5 + 1e-6


def test_least_padding_wins() -> None:
    sizes = ("640x640", "640x864", "864x640")
    assert placed(480, 640, *sizes) == ("640x864", (640, 853))
    assert placed(640, 480, *sizes) == ("864x640", (853, 640))
    assert placed(700, 690, *sizes) == ("640x640", (640, 631))


def test_of_equal_paddings_the_largest_wins() -> None:
    assert placed(100, 100, "320x320", "640x640", "480x480")[0] == "640x640"


def test_never_takes_the_pictures_own_pixels() -> None:
    assert placed(300, 400, "640x640", "320x416", resize="never") == ("320x416", (300, 400))
    assert placed(640, 640, "640x640", resize="never") == ("640x640", (640, 640))
    with pytest.raises(InputError, match=r"641x640 fits on no canvas of 640x640, 320x416 as it is; .*--size 672x640"):
        placed(641, 640, "640x640", "320x416", resize="never")


def test_unknown_resize() -> None:
    with pytest.raises(InputError, match="resize 'stretch': unknown; choose from fit, never"):
        placed(10, 10, "32x32", resize="stretch")


def test_padding_is_the_part_without_picture() -> None:
    assert Placement(canvas=size("64x64"), valid_size=(48, 64)).padding == 0.25


def test_picture_lies_in_the_upper_left_corner() -> None:
    picture = np.random.default_rng(0).integers(1, 256, (48, 64, 3), dtype=np.uint8)
    canvas = place_picture(picture, Placement(canvas=size("64x96"), valid_size=(48, 64)))
    assert canvas.dtype == np.uint8
    assert canvas.shape == (3, 64, 96)
    np.testing.assert_array_equal(canvas[:, :48, :64].transpose(1, 2, 0), picture)
    assert not canvas[:, 48:].any()
    assert not canvas[:, :, 64:].any()


def test_resampling_is_pillows_bilinear() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (100, 80, 3), dtype=np.uint8)
    canvas = place_picture(picture, Placement(canvas=size("64x64"), valid_size=(64, 51)))
    wanted = np.asarray(Image.fromarray(picture).resize((51, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(canvas[:, :64, :51].transpose(1, 2, 0), wanted)
