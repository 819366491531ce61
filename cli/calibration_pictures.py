"""Where calibration pictures come from: a folder, or a split of the emoji scenes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import InputError
from .options import warn
from .progress import progress_bar

if TYPE_CHECKING:
    from ..calibration.pictures import CalibrationPicture, CalibrationPictures
    from ..calibration.survey import SurveyedPictures
    from ..training.scenes import Split

EMOJI_SCENES = "emoji-scenes"
SPLITS: tuple[Split, ...] = ("train", "val", "test")
DEFAULT_LIMIT = 128
EVALUATED_SCENES = 240
"""Of a split, when all of it is asked for: as many as `ebseg bench accuracy` takes."""
SKIPPED_SHOWN = 5

PICTURES_HELP = "A folder, with those in it; or emoji-scenes:train, :val or :test."


class EmojiScenePictures:
    """Scenes of one split, by the artists of the training.

    Args:
        split: of the emoji scenes.
        count: how many, from the first on.
        cache: folder of the fetched packages.

    Raises:
        InputError: the sprites have not been fetched.
    """

    def __init__(self, split: Split, count: int, cache: Path | None = None) -> None:
        from ..training.emoji_classes import CLASSES
        from ..training.scenes import SceneConfig, SceneSource
        from ..training.sprites import TRAIN_ARTISTS, load_sprites

        self.name = f"{EMOJI_SCENES}:{split}"
        self.classes = tuple(each.name for each in CLASSES)
        self._count = count
        self._scenes = SceneSource(sprites=load_sprites(cache, artists=TRAIN_ARTISTS), split=split)
        self._config = SceneConfig()

    def __len__(self) -> int:
        return self._count

    def title(self, index: int) -> str:
        return f"scene {index}"

    def picture(self, index: int) -> CalibrationPicture:
        """Scene `index` of the split."""
        from ..calibration.pictures import CalibrationPicture

        scene = self._scenes.scene(index, self._config)
        return CalibrationPicture(name=self.title(index), pixels=scene.image, labels=scene.labels)


def open_pictures(spelling: str, *, scenes: int = EVALUATED_SCENES, data: Path | None = None) -> CalibrationPictures:
    """The pictures that `--images` names.

    Args:
        spelling: a folder, or "emoji-scenes:train", ":val" or ":test".
        scenes: how many scenes a split has.
        data: folder of the fetched packages.

    Raises:
        InputError: no such folder or split, no picture in it, or sprites that have not been fetched.
    """
    name, _, split = spelling.partition(":")
    if name == EMOJI_SCENES and not Path(spelling).exists():
        if split not in SPLITS:
            raise InputError(
                f"pictures {spelling}: no such split", cure=f"give {', '.join(f'{EMOJI_SCENES}:{s}' for s in SPLITS)}"
            )
        return EmojiScenePictures(next(each for each in SPLITS if each == split), scenes, data)
    from ..calibration.pictures import open_folder

    return open_folder(Path(spelling))


def survey_pictures(spelling: str, limit: int | None, *, data: Path | None = None) -> SurveyedPictures:
    """Open the pictures, look at each, and say on stderr which were skipped.

    Raises:
        InputError: none of them can be used; see open_pictures.
    """
    from ..calibration.survey import survey

    source = open_pictures(spelling, scenes=limit or EVALUATED_SCENES, data=data)
    with progress_bar(f"looking at {source.name}") as report:
        found = survey(source, limit=limit, progress=report)
    for line in found.skipped[:SKIPPED_SHOWN]:
        warn(f"skipped: {line}")
    if len(found.skipped) > SKIPPED_SHOWN:
        warn(f"skipped: {len(found.skipped) - SKIPPED_SHOWN} more pictures")
    if found.skipped:
        click.echo(f"{len(found.skipped)} pictures skipped, {len(found)} used", err=True)
    return found
