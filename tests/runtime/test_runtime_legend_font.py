"""Names of every script in the legend: drawn by a font that has them, or told by their index, never as boxes."""

from __future__ import annotations

import numpy as np
import pytest
from ebseg_deploy.runtime import legend_font
from ebseg_deploy.runtime.legend_font import MISSING, legend_text
from PIL import ImageFont


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legend_font, "SYSTEM_FONTS", ("no-such-font.ttf",))


def drawn_as_boxes(text: str, font: ImageFont.FreeTypeFont) -> bool:
    box = np.array(font.getmask(MISSING))
    return any(np.array_equal(np.array(font.getmask(letter)), box) for letter in text if letter != " ")


@pytest.mark.parametrize("name", ["cat", "naïve café", "猫", "🐱 cat face", "👨‍👩‍👧 family", "عربي", "nai\u0308f"])
def test_no_name_is_drawn_as_boxes(name: str) -> None:
    text, font = legend_text(name, 5, 20)
    assert not drawn_as_boxes(text, font)
    assert text


def test_plain_names_stay_as_they_are() -> None:
    assert legend_text("red fox, big", 5, 20)[0] == "red fox, big"


@pytest.mark.usefixtures("no_system_fonts")
@pytest.mark.parametrize(
    ("name", "wanted"),
    [("猫", "class 5"), ("🐱 cat face", "class 5 (cat face)"), ("café", "cafe"), ("Straße", "class 5 (Stra e)")],
)
def test_names_that_no_font_has_lose_their_accents_or_are_told_by_their_index(name: str, wanted: str) -> None:
    text, font = legend_text(name, 5, 20)
    assert text == wanted
    assert not drawn_as_boxes(text, font)
