"""The stages put together for nano: which data, which weights from which run folder, which config.

A run folder holds a folder per stage, each with config.json, last.pt and the history:

    RUN/clip  →  RUN/distill  →  RUN/windows  →  RUN/ebseg  →  ebseg-nano.safetensors
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..model.config import EBSEG_NANO, EbsegConfig
from ..model.ebseg import EBSeg
from .checkpoints import LAST, read_checkpoint
from .clip_stage import ClipStage, ClipStageConfig
from .clip_weights import install_clip
from .contrastive import ContrastiveClip, folded, statistics
from .distill_stage import DistillStage, DistillStageConfig
from .ebseg_stage import EbsegStage, EbsegStageConfig
from .emoji_classes import CLASS_NAMES, THINGS
from .emoji_packages import default_cache
from .initialise import initialise
from .prompts import class_embeddings, prompt_tokens
from .sam_patches import with_patches_of
from .samples import EmojiSamples
from .scenes import SceneConfig, SceneSource, batch
from .sprites import TRAIN_ARTISTS, load_sprites
from .unnamed_objects import unnamed_objects
from .window_stage import WindowStage, WindowStageConfig

STAGES = ("clip", "distill", "windows", "ebseg")
_STATISTICS_BATCHES = 8
BACKGROUND = "ov_classifier.bg_embed"
"""Lies among CLIP's weights, but stage 3 learns it."""


def training_scenes(cache: Path | None = None, *, seed: int = 0, unnamed: bool = False) -> SceneSource:
    """The training split, by the training artists; with the objects that are no class after the things, if asked."""
    cache = default_cache() if cache is None else cache
    sprites = load_sprites(cache, artists=TRAIN_ARTISTS)  # says what is wrong with the cache
    if unnamed:
        sprites = load_sprites(cache, artists=TRAIN_ARTISTS, things=(*THINGS, *unnamed_objects(cache)))
    return SceneSource(sprites=sprites, split="train", seed=seed)


def clip_stage(source: SceneSource, config: ClipStageConfig | None = None) -> ClipStage:
    """Stage 1 for nano."""
    return ClipStage(config or ClipStageConfig(clip=EBSEG_NANO.clip), source)


def trained_clip(folder: Path, source: SceneSource, model: EbsegConfig = EBSEG_NANO) -> ContrastiveClip:
    """Stage 1's result with its norms folded into the weights, which are then plain CLIP's.

    Args:
        folder: of stage 1.
        source: scenes on which the norms' statistics are taken anew, with the final weights.
        model: whose CLIP it is.

    Raises:
        CheckpointError: no checkpoint, or one of another model.
    """
    content = read_checkpoint(folder / LAST)
    if content["stage"] != ClipStage.name:
        raise CheckpointError(
            f"{folder}: holds stage {content['stage']!r}, wanted 'clip'", cure="give stage 1's folder"
        )
    if content["config"]["clip"] != dataclasses.asdict(model.clip):
        raise CheckpointError(f"{folder}: a CLIP of another shape than {model.name}'s", cure="train stage 1 anew")
    trained = ContrastiveClip(model.clip)
    trained.load_state_dict(content["state"]["model"])
    patches = trained.grid * 5 // 8  # 160 pixels of nano's 256, as in the last level
    scene = SceneConfig(side=patches * model.clip.patch, objects=(2, 4))
    first = 1 << 38  # scenes no stage trains on
    pictures = [
        torch.from_numpy(batch(source, range(first + i * 32, first + (i + 1) * 32), scene)[0])
        for i in range(_STATISTICS_BATCHES)
    ]
    statistics(trained, pictures, prompt_tokens(CLASS_NAMES).flatten(0, 1))
    plain = ContrastiveClip(model.clip).eval()
    plain.clip.load_state_dict(folded(trained))
    return plain


def distill_stage(
    clip_folder: Path, source: SceneSource, config: DistillStageConfig | None = None, model: EbsegConfig = EBSEG_NANO
) -> DistillStage:
    """Stage 2 for nano, from stage 1's folder."""
    teacher = trained_clip(clip_folder, source, model)
    student = EBSeg(model)
    install_clip(student, teacher.clip.state_dict())
    text = class_embeddings(student.text_encoder(), CLASS_NAMES)
    return DistillStage(config or DistillStageConfig(), student, teacher, source, text)


def window_stage(
    clip_folder: Path, source: SceneSource, config: WindowStageConfig | None = None, model: EbsegConfig = EBSEG_NANO
) -> WindowStage:
    """Stage 2b for nano, from stage 2's folder, or from an earlier 2b's for another schedule."""
    network = _with_clip_of(clip_folder, (DistillStage.name, WindowStage.name), model, "give stage 2's or 2b's folder")
    text = class_embeddings(network.text_encoder(), CLASS_NAMES)
    return WindowStage(config or WindowStageConfig(), network, source, text)


def ebseg_stage(
    clip_folder: Path, source: SceneSource, config: EbsegStageConfig, *, start: Path | None = None
) -> EbsegStage:
    """Stage 3 on emoji scenes, from stage 2's or 2b's folder.

    Args:
        clip_folder: of stage 2 or 2b, whose CLIP stays as it is.
        source: the training scenes; only seen things are drawn from it. With `config.unnamed` it must have
            such objects.
        config: `nano_stage`'s.
        start: folder of an earlier stage 3, whose weights a new schedule begins with; initial ones unless given. Its
            SAM may have patches of another size.
    """
    model = config.model
    network = _with_clip_of(clip_folder, (DistillStage.name, WindowStage.name), model, "give stage 2's or 2b's folder")
    initialise(network, config.seed, sam=True)
    if start is not None:
        clip = {name: tensor.clone() for name, tensor in network.state_dict().items() if name != BACKGROUND}
        earlier = with_patches_of(read_checkpoint(start / LAST)["state"]["model"], model.sam)
        load_weights(network, earlier, str(start))
        load_weights(network, clip, str(clip_folder), clip_only=True)  # it may be another than start's
    samples = EmojiSamples(source, SceneConfig(unnamed=config.unnamed), seed=config.seed)
    return EbsegStage(config, network, samples, class_embeddings(network.text_encoder(), samples.names))


def _with_clip_of(folder: Path, stages: tuple[str, ...], model: EbsegConfig, cure: str) -> EBSeg:
    """An EBSeg with the CLIP of a folder of one of `stages`; the rest is not initialised."""
    content = read_checkpoint(folder / LAST)
    if content["stage"] not in stages:
        wanted = " or ".join(repr(stage) for stage in stages)
        raise CheckpointError(f"{folder}: holds stage {content['stage']!r}, wanted {wanted}", cure=cure)
    network = EBSeg(model)
    load_weights(network, content["state"]["model"], str(folder), clip_only=True)
    return network


def trained_model(folder: Path, model: EbsegConfig = EBSEG_NANO) -> EBSeg:
    """The network of a stage 2 or 3 folder, ready for inference."""
    return trained_model_and_stage(folder, model)[0]


def trained_model_and_stage(folder: Path, model: EbsegConfig = EBSEG_NANO) -> tuple[EBSeg, str]:
    """The same, and the name of the stage whose folder it is."""
    content = read_checkpoint(folder / LAST)
    network = EBSeg(model)
    load_weights(network, content["state"]["model"], str(folder))
    return network.requires_grad_(False).eval(), content["stage"]


def load_weights(network: EBSeg, state: dict[str, Tensor], source: str, *, clip_only: bool = False) -> None:
    """Copy tensors by name; of CLIP's towers alone, if told, which is what stage 2 hands on."""
    if clip_only:
        homes = ("clip_visual_extractor.", "clip_rec_head.", "ov_classifier.")
        state = {name: tensor for name, tensor in state.items() if name.startswith(homes)}
    try:
        network.load_state_dict(state, strict=not clip_only)
    except RuntimeError as error:
        raise CheckpointError(
            f"{source}: weights of another config ({str(error).splitlines()[-1].strip()[:120]})",
            cure=f"train it with {network.config.name}'s config of this release",
        ) from error
