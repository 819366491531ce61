"""What EBSeg trains on: pictures with label maps, from emoji scenes or from a folder; step i decides batch i."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from .emoji_classes import CLASSES
from .matching import NO_NAME, Targets
from .scenes import SceneConfig, SceneSource, batch
from .unnamed_objects import UNNAMED

IGNORE = 255


class Batch(NamedTuple):
    """Pictures and their truth."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB."""
    valid_size: Tensor
    """(B, 2) int32: rows and columns that hold the picture."""
    targets: list[Targets]


class Samples(Protocol):
    """A training set."""

    names: tuple[str, ...]
    """The training classes: index = class of a target."""

    def batch(self, step: int, size: int) -> Batch:
        """The `size` pictures of a step; the same for the same step."""


def masks_of(labels: Tensor, classes: int) -> Targets:
    """One mask for each class that occurs: (H, W) integer labels, values from `classes` on ignored -> Targets."""
    present = torch.unique(labels)
    present = present[present < classes]
    return Targets(classes=present.long(), masks=(labels == present[:, None, None]).float())


class EmojiSamples:
    """Scenes of seen things; the training classes are the seen classes, in their order in CLASSES.

    With `scene.unnamed` some of the objects are no class: targets of class NO_NAME.
    """

    def __init__(self, source: SceneSource, scene: SceneConfig | None = None, *, seed: int = 0) -> None:
        seen = [i for i, each in enumerate(CLASSES) if each.seen]
        self.names = tuple(CLASSES[i].name for i in seen)
        self.seed = seed
        self._source = source
        things = tuple(i for i in seen if CLASSES[i].emoji)
        self._scene = dataclasses.replace(scene or SceneConfig(), things=things)
        self._index = torch.full((256,), IGNORE, dtype=torch.long)
        self._index[seen] = torch.arange(len(seen))

    def batch(self, step: int, size: int) -> Batch:
        """Scenes of their own: numbered from 2^40 on, apart from those of stage 1."""
        first = (1 << 40) + (self.seed << 32) + step * size
        images, labels = batch(self._source, range(first, first + size), self._scene)
        side = self._scene.side
        return Batch(
            images=torch.from_numpy(images),
            valid_size=torch.tensor([[side, side]] * size, dtype=torch.int32),
            targets=[self._targets(torch.from_numpy(each).long()) for each in labels],
        )

    def _targets(self, labels: Tensor) -> Targets:
        named = masks_of(self._index[labels], len(self.names))
        numbers = torch.unique(labels[labels >= UNNAMED])
        return Targets(
            classes=torch.cat((named.classes, torch.full_like(numbers, NO_NAME))),
            masks=torch.cat((named.masks, (labels == numbers[:, None, None]).float())),
        )


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How a picture of a folder becomes a training crop, as in the published training."""

    size: int = 640
    shortest: tuple[int, int] = (320, 1280)
    """The shorter side is resized to a length drawn from here."""
    flip: float = 0.5
    one_class_at_most: float = 0.75
    """A crop in which one class covers more than this is drawn again, up to ten times."""


class FolderSamples:
    """Pictures `images/**` with label PNGs of the same stem in `labels/**` (detectron2's layout), 255 ignored.

    Raises:
        InputError: a folder is missing or empty, a label map is missing, of another size, or has values beyond the
            names.
    """

    def __init__(
        self, images: Path, labels: Path, names: tuple[str, ...], crop: CropConfig | None = None, *, seed: int = 0
    ) -> None:
        self.names = names
        self.crop = crop or CropConfig()
        self.seed = seed
        if not images.is_dir() or not labels.is_dir():
            raise InputError(
                f"{images}, {labels}: not both are folders", cure="give the images' and the labels' folder"
            )
        pictures = sorted(p for p in images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not pictures:
            raise InputError(f"{images}: no .jpg or .png in it", cure="give the folder that holds the pictures")
        self._pairs = [(picture, labels / picture.relative_to(images).with_suffix(".png")) for picture in pictures]
        for picture, label in self._pairs:
            if not label.is_file():
                raise InputError(f"{picture}: no label map {label}", cure="label every picture, or take it out")

    def batch(self, step: int, size: int) -> Batch:
        crops = []
        for place in range(size):
            rng = np.random.default_rng([self.seed, step, place])
            crops.append(self._crop(rng, *self._pairs[int(rng.integers(len(self._pairs)))]))
        return Batch(
            images=torch.from_numpy(np.stack([image for image, _, _ in crops]).transpose(0, 3, 1, 2).copy()),
            valid_size=torch.tensor([valid for _, _, valid in crops], dtype=torch.int32),
            targets=[masks_of(torch.from_numpy(label), len(self.names)) for _, label, _ in crops],
        )

    def _crop(
        self, rng: np.random.Generator, picture: Path, label: Path
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        with Image.open(picture) as opened:
            image = opened.convert("RGB")
        with Image.open(label) as opened:
            truth = Image.fromarray(np.asarray(opened).astype(np.int32))
        if image.size != truth.size:
            raise InputError(f"{label}: {truth.size}, its picture is {image.size}", cure="make the label map anew")
        highest = max((int(v) for v in np.unique(np.asarray(truth)) if v != IGNORE), default=0)
        if highest >= len(self.names) and highest != 65535:
            raise InputError(f"{label}: value {highest}, wanted below {len(self.names)} or 255", cure="check the names")
        scale = int(rng.integers(self.crop.shortest[0], self.crop.shortest[1] + 1)) / min(image.size)
        shape = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        pixels = np.asarray(image.resize(shape, Image.Resampling.BILINEAR))
        classes = np.asarray(truth.resize(shape, Image.Resampling.NEAREST))
        if rng.random() < self.crop.flip:
            pixels, classes = pixels[:, ::-1], classes[:, ::-1]
        side = self.crop.size
        height, width = min(side, shape[1]), min(side, shape[0])
        for _ in range(10):
            top, left = int(rng.integers(shape[1] - height + 1)), int(rng.integers(shape[0] - width + 1))
            part = classes[top : top + height, left : left + width]
            counts = np.unique(part[part < len(self.names)], return_counts=True)[1]
            if len(counts) > 1 and counts.max() < self.crop.one_class_at_most * counts.sum():
                break
        image_out = np.zeros((side, side, 3), np.uint8)
        label_out = np.full((side, side), len(self.names), np.int64)
        image_out[:height, :width] = pixels[top : top + height, left : left + width]
        label_out[:height, :width] = np.where(part < len(self.names), part, len(self.names))
        return image_out, label_out, (height, width)
