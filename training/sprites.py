"""Sprites: each thing as each artist draws it, cut to its outline and brought to one size.

Fluent's are pictures; Noto's and Twemoji's are SVG, rendered with resvg. All are read straight from the tarballs and
kept in one small .npz beside them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from .emoji_classes import THINGS, EmojiClass
from .emoji_packages import FLUENT, NOTO, TWEMOJI, NpmPackage, default_cache, integrity, read_members

SPRITE_SIDE = 112
_RENDER_SIDE = 160  # larger than a sprite, so that cutting to the outline never enlarges by much
_FORMAT = 1

ARTIST_PACKAGES: dict[str, NpmPackage] = {"fluent": FLUENT, "noto": NOTO, "twemoji": TWEMOJI}
TRAIN_ARTISTS = ("fluent", "noto")
UNSEEN_ARTIST = "twemoji"


@dataclass(frozen=True, kw_only=True)
class SpriteBank:
    """All things by some artists."""

    artists: tuple[str, ...]
    names: tuple[str, ...]
    pixels: NDArray[np.uint8]
    """(artists, things, 112, 112, 4) RGBA, alpha not multiplied in; the thing centred, its longer side 112."""

    def only(self, artists: Sequence[str]) -> SpriteBank:
        """The same things by fewer artists.

        Raises:
            InputError: an artist is not in the bank.
        """
        for artist in artists:
            if artist not in self.artists:
                raise InputError(f"artist {artist!r} is unknown", cure=f"choose from {', '.join(self.artists)}")
        rows = [self.artists.index(artist) for artist in artists]
        return SpriteBank(artists=tuple(artists), names=self.names, pixels=self.pixels[rows])


def load_sprites(
    cache: Path | None = None, *, artists: Sequence[str] = tuple(ARTIST_PACKAGES), things: Sequence[EmojiClass] = THINGS
) -> SpriteBank:
    """The sprites of `things` by `artists`, from the fetched tarballs.

    Raises:
        InputError: a tarball is missing or damaged, or an artist did not draw a thing.
    """
    cache = default_cache() if cache is None else cache
    for artist in artists:
        if artist not in ARTIST_PACKAGES:
            raise InputError(f"artist {artist!r} is unknown", cure=f"choose from {', '.join(ARTIST_PACKAGES)}")
    names = tuple(thing.name for thing in things)
    store = cache / f"sprites-{_key(artists, things)}.npz"
    if store.is_file():
        with np.load(store, allow_pickle=False) as held:
            return SpriteBank(artists=tuple(artists), names=names, pixels=held["pixels"])
    pixels = np.stack([_artist_sprites(artist, cache, things) for artist in artists])
    handle, temporary = tempfile.mkstemp(dir=cache, suffix=".npz")
    with os.fdopen(handle, "wb") as file:
        np.savez_compressed(file, pixels=pixels)
    os.replace(temporary, store)
    return SpriteBank(artists=tuple(artists), names=names, pixels=pixels)


def _key(artists: Sequence[str], things: Sequence[EmojiClass]) -> str:
    parts = [str(_FORMAT), *(ARTIST_PACKAGES[artist].integrity for artist in artists)]
    parts += [f"{thing.name}={thing.emoji}" for thing in things]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _artist_sprites(artist: str, cache: Path, things: Sequence[EmojiClass]) -> NDArray[np.uint8]:
    package = ARTIST_PACKAGES[artist]
    tarball = cache / package.file_name
    if not tarball.is_file():
        raise InputError(f"{tarball}: the sprites of {artist} are not here", cure="run `ebseg train fetch-data`")
    if integrity(tarball) != package.integrity:
        raise InputError(f"{tarball}: damaged (its hash is not the pinned one)", cure="run `ebseg train fetch-data`")
    drawings = _fluent(tarball, things) if package is FLUENT else _iconify(tarball, things)
    for thing in things:
        if thing.name not in drawings:
            raise InputError(f"{artist} has no drawing of {thing.name!r} ({thing.emoji})", cure="leave the class out")
    return np.stack([_cut(drawings[thing.name]) for thing in things])


def code_points(emoji: str) -> tuple[str, ...]:
    """The spellings of a character that packages use as a key: with and without the variation selector."""
    plain = "-".join(f"{ord(character):04x}" for character in emoji if ord(character) != 0xFE0F)
    return f"{plain}-fe0f", plain


def _fluent(tarball: Path, things: Sequence[EmojiClass]) -> dict[str, Image.Image]:
    paths = {f"assets/{key}.webp": thing.name for thing in things for key in code_points(thing.emoji or "")}
    members = read_members(tarball, paths.__contains__)
    return {paths[path]: Image.open(io.BytesIO(data)).convert("RGBA") for path, data in members.items()}


def _iconify(tarball: Path, things: Sequence[EmojiClass]) -> dict[str, Image.Image]:
    import resvg_py

    members = read_members(tarball, ("icons.json", "chars.json").__contains__)
    icons, characters = json.loads(members["icons.json"]), json.loads(members["chars.json"])
    drawings = {}
    for thing in things:
        key = next((key for key in code_points(thing.emoji or "") if key in characters), None)
        if key is None or characters[key] not in icons["icons"]:
            continue
        icon = icons["icons"][characters[key]]
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(svg_string=svg, width=_RENDER_SIDE, height=_RENDER_SIDE, skip_system_fonts=True)
        drawings[thing.name] = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return drawings


def _cut(drawing: Image.Image) -> NDArray[np.uint8]:
    """Crop to where alpha exceeds 8/255 and fit into 112×112, centred."""
    box = drawing.getchannel("A").point([255 if alpha > 8 else 0 for alpha in range(256)]).getbbox()
    if box is None:
        raise InputError("a sprite is wholly transparent", cure="leave the class out")
    cut = drawing.crop(box)
    scale = SPRITE_SIDE / max(cut.size)
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    # premultiplied ("RGBa"): plain RGBA resizing bleeds the colour of transparent pixels into the outline
    fitted = cut.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (SPRITE_SIDE, SPRITE_SIDE))
    square.paste(fitted, ((SPRITE_SIDE - size[0]) // 2, (SPRITE_SIDE - size[1]) // 2))
    return np.asarray(square)
