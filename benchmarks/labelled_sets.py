"""Pictures with label maps: the emoji scenes, and the published benchmarks' folders.

The folders are those that the published evaluation reads, made by its scripts in detectron2's style: pictures, and
label files of the same stem whose values are indices into the benchmark's classes.

| benchmark | pictures | labels | ignored |
|---|---|---|---|
| voc-20 | VOC2012/images_detectron2/val | VOC2012/annotations_detectron2/val | 255 |
| pascal-context-59 | pcontext/val/image | pcontext/val/label | 255 |
| pascal-context-459 | pcontext_full/val/image | pcontext_full/val/label (16 bit) | 65535 |
| ade20k-150 | ADEChallengeData2016/images/validation | ADEChallengeData2016/annotations_detectron2/validation | 255 |
| ade20k-847 | ADE20K_2021_17_01/images_detectron2/validation | …/annotations_detectron2/validation (16 bit) | 65535 |
| coco-stuff-171 | coco/val2017 | coco/stuffthingmaps_detectron2/val2017 | 255 |
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ..errors import InputError
from ..runtime.class_names import ClassEntry
from ..runtime.picture import PictureSource

PICTURES = (".jpg", ".jpeg", ".png")
LABELS = (".png", ".tif", ".tiff")
EMOJI_SCENES = "emoji-scenes"
EMOJI_TEST_SCENES = 240


class Example(NamedTuple):
    """One picture and its truth."""

    name: str
    picture: PictureSource
    truth: npt.NDArray[Any]
    """(H, W) class indices."""


class LabelledSet(Protocol):
    """A benchmark's pictures."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str | Sequence[ClassEntry]:
        """The classes, as `Segmenter.vocabulary` takes them."""

    @property
    def ignore(self) -> int | None:
        """Label value that is not counted."""

    @property
    def background(self) -> Sequence[str]:
        """Classes that the means over seen and new classes leave out."""

    @property
    def near_classes(self) -> Sequence[Sequence[str]]:
        """Groups whose confusion is of interest."""

    @property
    def fingerprint(self) -> str:
        """Changes when the pictures do: a measurement of other ones is not continued."""

    def __len__(self) -> int: ...

    def example(self, index: int) -> Example: ...


@dataclass(frozen=True, kw_only=True)
class _Layout:
    images: str
    labels: str
    ignore: int = 255


LAYOUTS: dict[str, _Layout] = {
    "voc-20": _Layout(images="VOC2012/images_detectron2/val", labels="VOC2012/annotations_detectron2/val"),
    "pascal-context-59": _Layout(images="pcontext/val/image", labels="pcontext/val/label"),
    "pascal-context-459": _Layout(images="pcontext_full/val/image", labels="pcontext_full/val/label", ignore=65535),
    "ade20k-150": _Layout(
        images="ADEChallengeData2016/images/validation", labels="ADEChallengeData2016/annotations_detectron2/validation"
    ),
    "ade20k-847": _Layout(
        images="ADE20K_2021_17_01/images_detectron2/validation",
        labels="ADE20K_2021_17_01/annotations_detectron2/validation",
        ignore=65535,
    ),
    "coco-stuff-171": _Layout(images="coco/val2017", labels="coco/stuffthingmaps_detectron2/val2017"),
}


@dataclass(frozen=True, kw_only=True)
class FolderSet:
    """A published benchmark in its folders. Make one with `open_folders`."""

    name: str
    source: str | Sequence[ClassEntry]
    ignore: int | None
    pairs: tuple[tuple[Path, Path], ...] = field(repr=False)
    """Picture and label file."""
    background: Sequence[str] = ()
    near_classes: Sequence[Sequence[str]] = ()

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.name.encode())
        for picture, label in self.pairs:
            digest.update(f"{picture.name} {picture.stat().st_size} {label.stat().st_size}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.pairs)

    def example(self, index: int) -> Example:
        """Raises InputError: the label file is no single-channel image."""
        picture, label = self.pairs[index]
        return Example(name=picture.name, picture=picture, truth=read_labels(label))


def open_folders(name: str, root: Path, *, images: Path | None = None, labels: Path | None = None) -> FolderSet:
    """Find a published benchmark's files.

    Args:
        name: one of LAYOUTS.
        root: the folder that holds the benchmark's own, as in the module's table.
        images: folder of the pictures, if it is elsewhere.
        labels: folder of the label files, if it is elsewhere.

    Raises:
        InputError: an unknown name, a missing or empty folder, or a picture without label file.
    """
    if name not in LAYOUTS:
        raise InputError(f"data set {name!r} is not known", cure=f"choose {EMOJI_SCENES}, {', '.join(LAYOUTS)}")
    layout = LAYOUTS[name]
    images = root / layout.images if images is None else images
    labels = root / layout.labels if labels is None else labels
    for folder in (images, labels):
        if not folder.is_dir():
            raise InputError(f"{name}: no folder {folder}", cure="give the folder above it with --data, or see --help")
    pictures = sorted(path for path in images.rglob("*") if path.suffix.lower() in PICTURES)
    if not pictures:
        raise InputError(f"{name}: no .jpg or .png in {images}", cure="give the folder that holds the pictures")
    pairs = []
    for picture in pictures:
        stem = labels / picture.relative_to(images)
        found = next((path for path in map(stem.with_suffix, LABELS) if path.is_file()), None)
        if found is None:
            raise InputError(f"{name}: {picture.name} has no label file in {labels}", cure="prepare the labels again")
        pairs.append((picture, found))
    return FolderSet(name=name, source=name, ignore=layout.ignore, pairs=tuple(pairs))


def read_labels(path: Path) -> npt.NDArray[Any]:
    """(H, W) class indices of a label file: 8 or 16 bit grey, or a palette's indices.

    Raises:
        InputError: not an image, or one with several channels.
    """
    try:
        with Image.open(path) as image:
            labels = np.asarray(image)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise InputError(f"labels {path}: not an image Pillow can read", cure="prepare the labels again") from error
    if labels.ndim != 2 or labels.dtype.kind not in "ui":
        raise InputError(
            f"labels {path}: {labels.shape} {labels.dtype}, wanted one channel of whole numbers",
            cure="give label maps, not coloured pictures",
        )
    return labels


class EmojiScenes:
    """The held-out emoji scenes, composed from the fetched sprites; no file to download beyond those.

    Args:
        artists: "training artists" or "unseen artist".
        scenes: how many, from the first of the test split on.
        cache: folder of the fetched packages.

    Raises:
        InputError: the sprites have not been fetched.
    """

    ignore: int | None = None

    def __init__(self, artists: str = "training artists", scenes: int = EMOJI_TEST_SCENES, cache: Path | None = None):
        from ..training.emoji_classes import CLASSES, NEAR_CLASSES, STUFF_NAMES
        from ..training.scenes import SceneConfig, SceneSource
        from ..training.sprites import TRAIN_ARTISTS, UNSEEN_ARTIST, load_sprites

        chosen = TRAIN_ARTISTS if artists == "training artists" else (UNSEEN_ARTIST,)
        self.name = f"{EMOJI_SCENES}, {artists}"
        self.source: Sequence[ClassEntry] = [ClassEntry(name=each.name, seen=each.seen) for each in CLASSES]
        self.background: Sequence[str] = STUFF_NAMES
        self.near_classes: Sequence[Sequence[str]] = NEAR_CLASSES
        self._scenes = SceneSource(sprites=load_sprites(cache, artists=chosen), split="test")
        self._config = SceneConfig()
        self._count = scenes

    @property
    def fingerprint(self) -> str:
        first = self._scenes.scene(0, self._config)
        return hashlib.sha256(self.name.encode() + first.image.tobytes() + first.labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return self._count

    def example(self, index: int) -> Example:
        """Scene `index` of the test split."""
        scene = self._scenes.scene(index, self._config)
        return Example(name=f"scene {index}", picture=scene.image, truth=scene.labels)
