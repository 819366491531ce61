"""The three stages on a tiny model: they learn, resume exactly, and hand on what they should."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from ebseg_deploy.contract import VILD_TEMPLATES, Size
from ebseg_deploy.errors import CheckpointError
from ebseg_deploy.model.checkpoint import load_model
from ebseg_deploy.model.config import EBSEG_B, EBSEG_L
from ebseg_deploy.model.ebseg import EBSeg
from ebseg_deploy.training.clip_stage import STUFF_SHARE, ClipStage, ClipStageConfig, Level, area_targets, hit_rate
from ebseg_deploy.training.clip_weights import ebseg_clip_state, install_clip
from ebseg_deploy.training.contrastive import ContrastiveClip, clip_towers, folded, statistics
from ebseg_deploy.training.distill_stage import DistillStage, DistillStageConfig
from ebseg_deploy.training.ebseg_stage import EbsegStage, EbsegStageConfig, nano_stage, supervised_predictions
from ebseg_deploy.training.emoji_classes import CLASS_NAMES, CLASSES, THINGS
from ebseg_deploy.training.evaluate import Observed
from ebseg_deploy.training.finish import write_weights
from ebseg_deploy.training.initialise import initialise
from ebseg_deploy.training.loop import LoopConfig, Stage, run
from ebseg_deploy.training.losses import LossConfig
from ebseg_deploy.training.optimizer import adamw, cosine_rate, poly_rate
from ebseg_deploy.training.prompts import class_embeddings, encode_text, prompt_tokens
from ebseg_deploy.training.recipes import ebseg_stage, trained_clip, trained_model
from ebseg_deploy.training.recipes import window_stage as window_stage_of
from ebseg_deploy.training.region_stage import covered_patches, random_windows, window_masks
from ebseg_deploy.training.regions import mask_naming, mask_quality, region_accuracy
from ebseg_deploy.training.samples import EmojiSamples
from ebseg_deploy.training.scenes import SceneConfig, batch
from ebseg_deploy.training.window_stage import WindowStage, WindowStageConfig, window_captions
from paper_sprites import TINY, paper_scenes
from torch import Tensor
from torch.nn import functional as F

LEVELS = (
    Level(
        side=64, objects=(1, 1), object_side=(50, 60), batch=4, promote_at=2.0, least_steps=2, most_steps=2,
        text=False, templates=False,
    ),
    Level(
        side=128, objects=(1, 2), object_side=(50, 60), batch=2, promote_at=2.0, least_steps=3, most_steps=3,
        review=True,
    ),
)  # fmt: skip
CLIP = ClipStageConfig(clip=TINY.clip, levels=LEVELS, bf16=False, warmup_steps=1)
DISTILL = DistillStageConfig(steps=3, batch=2, windows=2, window_patches=(1, 2), teacher_side=64, bf16=False)
WINDOWS = WindowStageConfig(steps=3, batch=2, windows=2, window_patches=(1, 2), bf16=False)
EBSEG = dataclasses.replace(
    nano_stage(TINY, steps=16), size=128, batch=2, bf16=False, warmup_steps=0, loss=LossConfig(points=128)
)


def clip_stage() -> ClipStage:
    return ClipStage(CLIP, paper_scenes())


def distill_stage() -> DistillStage:
    torch.manual_seed(1)
    teacher = ContrastiveClip(TINY.clip)
    student = EBSeg(TINY)
    install_clip(student, teacher.clip.state_dict())
    text = class_embeddings(student.text_encoder(), CLASS_NAMES[:4])
    return DistillStage(DISTILL, student, teacher, paper_scenes(), text)


def window_stage(config: WindowStageConfig = WINDOWS) -> WindowStage:
    torch.manual_seed(1)
    model = EBSeg(TINY)
    text = F.normalize(torch.randn(len(CLASSES), TINY.clip.embedding_dim), dim=-1)
    install_clip(model, ContrastiveClip(TINY.clip).clip.state_dict())
    return WindowStage(config, model, paper_scenes(), text)


def tiny_ebseg_stage(config: EbsegStageConfig = EBSEG) -> EbsegStage:
    torch.manual_seed(2)
    model = EBSeg(TINY)
    initialise(model, 0, sam=True)
    samples = EmojiSamples(paper_scenes(), SceneConfig(side=128, objects=(1, 2), object_side=(40, 60)))
    text = F.normalize(torch.randn(len(samples.names), TINY.clip.embedding_dim), dim=-1)
    return EbsegStage(config, model, samples, text)


def flat(state: Any) -> dict[str, Any]:
    """Nested state as one dict."""
    if isinstance(state, dict):
        pairs = state.items()
    elif isinstance(state, list | tuple):
        pairs = enumerate(state)
    else:
        return {"": state}
    return {f"{key}.{name}": value for key, each in pairs for name, value in flat(each).items()}


@pytest.mark.parametrize(
    "make",
    [clip_stage, distill_stage, window_stage, tiny_ebseg_stage],
    ids=["clip", "distill", "windows", "ebseg"],
)
def test_a_resumed_stage_equals_an_unbroken_one(make: Any, tmp_path: Path) -> None:
    whole: Stage = make()
    run(whole, tmp_path / "whole", LoopConfig(max_steps=3))
    run(make(), tmp_path / "parts", LoopConfig(max_steps=1))
    parts: Stage = make()
    outcome = run(parts, tmp_path / "parts", LoopConfig(max_steps=2))
    assert outcome.step == 3
    expected, got = flat(whole.state_dict()), flat(parts.state_dict())
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]) if isinstance(value, Tensor) else value == got[name], name


def test_review_steps_show_the_first_levels_pictures() -> None:
    stage = clip_stage()
    rows = [stage.step(step) for step in range(5)]
    assert stage.finished(5)
    kinds = ["review_accuracy" in row for row in rows]
    assert kinds == [False, False, False, True, False]
    assert [row["level"] for row in rows] == [0, 1, 1, 1, 2]


def test_difficulty_rises_only_while_accuracy_holds() -> None:
    stage = clip_stage()
    stage._climb(LEVELS[0], 0.0)
    assert stage.difficulty == CLIP.first_difficulty
    stage.accuracy = 0.9
    stage._climb(LEVELS[0], 1.0)
    assert stage.difficulty == 1.0  # the level's last step: the next begins at full difficulty
    assert (stage.level, stage.level_steps) == (1, 0)
    patient = ClipStage(
        dataclasses.replace(CLIP, levels=(dataclasses.replace(LEVELS[0], most_steps=9),)), paper_scenes()
    )
    patient.accuracy = 0.9
    patient._climb(patient.config.levels[0], 1.0)
    assert patient.difficulty == pytest.approx(CLIP.first_difficulty + CLIP.raise_by)


def test_ebseg_training_lowers_the_loss() -> None:
    stage = tiny_ebseg_stage(dataclasses.replace(EBSEG, steps=40))
    losses = [stage.step(step)["loss"] for step in range(14)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), losses


def test_mask_attention_learns_to_say_what_clip_says_of_the_true_masks() -> None:
    alone = LossConfig(points=128, classification=0, mask=0, dice=0, structure=0, region=1)
    stage = tiny_ebseg_stage(dataclasses.replace(EBSEG, steps=40, learning_rate=2e-3, loss=alone))
    unlike = [stage.step(0)["region"] for _ in range(16)]  # the same pictures: others differ by more than is learnt
    assert unlike[-1] < 0.5 * unlike[0], unlike
    assert "region" not in tiny_ebseg_stage().step(0)


def test_only_what_should_train_changes() -> None:
    stage = tiny_ebseg_stage()
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    stage.step(0)
    changed = {name for name, tensor in stage.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in changed} == {"sem_seg_head", "backbone", "ov_classifier"}
    assert {name for name in changed if name.startswith("ov_classifier")} == {"ov_classifier.bg_embed"}


def test_the_published_recipe_freezes_all_but_positions_of_both_encoders() -> None:
    config = dataclasses.replace(EBSEG, train_sam=False, train_clip_positions=True)
    stage = tiny_ebseg_stage(config)
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    stage.step(0)
    changed = {name for name, tensor in stage.model.state_dict().items() if not torch.equal(tensor, before[name])}
    encoders = {name for name in changed if name.startswith(("backbone", "clip_"))}
    assert encoders == {"backbone.pos_embed", "clip_visual_extractor.positional_embedding"}


def test_the_last_supervised_prediction_is_the_deployed_one() -> None:
    stage = tiny_ebseg_stage()
    images, valid_size, _ = stage.samples.batch(0, 2)
    graphs = stage.model.graphs(Size(height=128, width=128))
    with torch.no_grad():
        clip, sam = graphs.clip_image_encoder(images, valid_size), graphs.sam_image_encoder(images, valid_size)
        last = supervised_predictions(stage.model, graphs, clip, images, valid_size, stage.text)[-1]
        output = graphs.adab_decoder(clip, sam)
    torch.testing.assert_close(last.mask_logits, output.mask_logits)
    torch.testing.assert_close(last.embeddings_a, output.embeddings_a)
    logits_b = output.embeddings_b @ stage.text.T * stage.model.logit_scale
    torch.testing.assert_close(last.embeddings_b, output.embeddings_b)
    torch.testing.assert_close(last.logits_b[..., :-1], logits_b, rtol=1e-4, atol=1e-4)


def test_folded_norms_change_nothing() -> None:
    torch.manual_seed(0)
    model = ContrastiveClip(TINY.clip)
    images = torch.from_numpy(batch(paper_scenes(), range(8), SceneConfig(side=128))[0])
    tokens = prompt_tokens(CLASS_NAMES[:20]).flatten(0, 1)
    statistics(model, [images[:4], images[4:]], tokens)
    model.eval()
    plain = ContrastiveClip(TINY.clip)
    plain.clip.load_state_dict(folded(model))
    with torch.no_grad():
        torch.testing.assert_close(plain.embed_plain(images), model.encode_images(images)[0], rtol=1e-4, atol=1e-5)
        text = F.normalize(encode_text(plain.clip, tokens), dim=-1)
        torch.testing.assert_close(text, model.encode_texts(tokens), rtol=1e-4, atol=1e-4)


def test_cut_prompts_give_open_clips_embeddings() -> None:
    import open_clip

    clip = clip_towers(TINY.clip)
    names = ("dog", "birthday cake")
    cut = prompt_tokens(names)
    assert cut.shape[:2] == (len(VILD_TEMPLATES), 2)
    assert cut.shape[2] < 20
    full = open_clip.tokenize([VILD_TEMPLATES[3].format(name) for name in names])
    with torch.no_grad():
        torch.testing.assert_close(encode_text(clip, cut[3]), clip.encode_text(full))


def test_ebsegs_encoder_is_the_trained_clip() -> None:
    """CLS through a query token that sees everything, and the text tower, are open_clip's own."""
    torch.manual_seed(0)
    clip = ContrastiveClip(TINY.clip).eval()
    model = EBSeg(TINY)
    install_clip(model, clip.clip.state_dict())
    images = torch.from_numpy(batch(paper_scenes(), range(2), SceneConfig(side=128))[0])
    graphs = model.graphs(Size(height=128, width=128))
    with torch.no_grad():
        features = graphs.clip_image_encoder(images, torch.tensor([[128, 128]] * 2, dtype=torch.int32))
        everything = torch.zeros(2, 1, 1, 16)
        b = graphs.adab_decoder.mask_attention(features.cls, features.head_keys, features.head_values, everything)
        torch.testing.assert_close(b[:, 0], clip.embed_plain(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [EBSEG_B, EBSEG_L, TINY], ids=lambda config: config.name)
def test_clip_names_map_to_all_of_ebsegs(config: Any) -> None:
    with torch.device("meta"):
        clip = clip_towers(config.clip).state_dict()
        wanted = EBSeg(config).state_dict()
    homes = ("clip_visual_extractor.", "clip_rec_head.", "ov_classifier.")
    names = {name for name in wanted if name.startswith(homes)} - {"ov_classifier.attn_mask", "ov_classifier.bg_embed"}
    state = ebseg_clip_state(clip, config)
    assert state.keys() == names
    assert all(state[name].shape == wanted[name].shape for name in names)


def test_clip_weights_of_another_shape_are_refused() -> None:
    other = dataclasses.replace(TINY.clip, width=64)
    with pytest.raises(CheckpointError, match=r"do not fit ebseg-tiny: .*wanted"):
        install_clip(EBSeg(TINY), clip_towers(other).state_dict())


def test_area_targets_are_shares_of_root_area() -> None:
    labels = torch.full((1, 10, 10), len(THINGS))
    labels[0, :4, :4] = 5  # 16 pixels of a thing against 84 of stuff
    target = area_targets(labels)[0]
    assert target.sum().item() == pytest.approx(1)
    assert (target[5] / target[len(THINGS)]).item() == pytest.approx(4 / (0.3 * 84**0.5), rel=1e-5)
    logits = torch.zeros(1, len(CLASSES))
    logits[0, len(THINGS)] = 9  # stuff does not count as a hit or a miss
    logits[0, 5] = 1
    assert hit_rate(logits, target[None]) == 1
    logits[0, 6] = 2
    assert hit_rate(logits, target[None]) == 0


def test_windows_hold_what_they_say() -> None:
    import numpy as np

    windows = random_windows(np.random.default_rng(0), 50, 8, (2, 5))
    heights, widths = windows[:, 2] - windows[:, 0], windows[:, 3] - windows[:, 1]
    assert windows.min() >= 0
    assert windows.max() <= 8
    assert {int(heights.min()), int(heights.max()), int(widths.min()), int(widths.max())} == {2, 5}
    masks = window_masks(windows[None], 8, round_corners=False)[0]
    assert masks[0].all()
    assert masks[1:].sum(1).tolist() == (heights * widths).tolist()
    top, left, bottom, right = windows[0].tolist()
    assert masks[1].reshape(8, 8)[top:bottom, left:right].all()
    rounded = window_masks(windows[None], 8, round_corners=True)[0]
    assert (rounded[1:] & ~masks[1:]).sum() == 0
    assert (rounded[1:].sum(1) > 0).all()


def test_a_mask_holds_the_patches_it_covers_and_at_least_one() -> None:
    first = torch.zeros(2, 32, 32)
    first[0, :8, :16] = 1  # two of 4x4 patches of 8
    first[0, 8:16, :3] = 1  # 37 % of a third
    first[1, 30, 30] = 1
    inside = covered_patches([first, torch.zeros(0, 32, 32)], (4, 4))
    assert inside.shape == (2, 2, 16)
    assert inside[0, 0].nonzero().flatten().tolist() == [0, 1]
    assert inside[0, 1].nonzero().flatten().tolist() == [15]
    assert inside[1].all()


def test_windows_captions_are_learnt() -> None:
    stage = window_stage(dataclasses.replace(WINDOWS, steps=60, warmup_steps=2, learning_rate=3e-3))
    losses = [stage.step(step)["loss"] for step in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses


def test_a_windows_caption_names_what_is_inside() -> None:
    """√area: of a 2x2 grid the left column holds 16 pixels of class 3, 8 of class 5 and 8 of sky; the right is sky."""
    sky = len(THINGS)
    labels = torch.full((1, 8, 8), sky)
    labels[0, :4, :4] = 3
    labels[0, 4:, :4] = 5
    labels[0, 4:6, :4] = sky
    inside = torch.tensor([[[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1]]]).bool()
    left, right, whole = window_captions(labels, inside, 2)[0]
    weights = torch.tensor([16**0.5, 8**0.5, STUFF_SHARE * 8**0.5])
    torch.testing.assert_close(left[[3, 5, sky]], weights / weights.sum())
    assert right[sky] == 1
    assert whole.argmax() == 3
    assert torch.count_nonzero(left) == 3


def test_poly_rate() -> None:
    assert poly_rate(0, base=2.0, steps=10) == 2.0
    assert poly_rate(5, base=2.0, steps=10) == pytest.approx(2 * 0.5**0.9)
    assert poly_rate(10, base=2.0, steps=10) == 0
    assert poly_rate(0, base=2.0, steps=10, warmup=4) == 0.5


def test_cosine_rate() -> None:
    assert cosine_rate(0, base=2.0, steps=100, warmup=4) == 0.5
    assert cosine_rate(50, base=2.0, steps=100, warmup=4) == pytest.approx(2 * 0.51)
    assert cosine_rate(100, base=2.0, steps=100, warmup=4) == pytest.approx(2 * 0.02)


def test_no_decay_for_embeddings_norms_and_positions() -> None:
    model = EBSeg(TINY)
    groups = adamw(model, learning_rate=1.0, weight_decay=0.05).param_groups
    free = {id(parameter) for parameter in groups[1]["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in free}
    assert groups[0]["weight_decay"] == 0.05
    assert groups[1]["weight_decay"] == 0
    for name in (
        "clip_visual_extractor.positional_embedding", "backbone.pos_embed", "ov_classifier.token_embedding.weight",
        "sem_seg_head.predictor.query_feat.weight", "sem_seg_head.predictor.decoder_norm.weight",
        "ov_classifier.bg_embed",
    ):  # fmt: skip
        assert name in names
    assert "sem_seg_head.pixel_decoder.mask_features.weight" not in names


def test_from_stage_to_stage_to_file(tmp_path: Path) -> None:
    """The chain of run folders: stage 1, 2, 3, float16 file, model."""
    run(clip_stage(), tmp_path / "clip", LoopConfig())
    teacher = trained_clip(tmp_path / "clip", paper_scenes(), TINY)
    student = EBSeg(TINY)
    install_clip(student, teacher.clip.state_dict())
    text = class_embeddings(student.text_encoder(), CLASS_NAMES[:4])
    run(DistillStage(DISTILL, student, teacher, paper_scenes(), text), tmp_path / "distill", LoopConfig())
    stage = ebseg_stage(tmp_path / "distill", paper_scenes(), nano_stage(TINY, steps=1))
    later = window_stage_of(tmp_path / "distill", paper_scenes(), WINDOWS, TINY)
    assert torch.equal(later.model.clip_rec_head.proj, student.clip_rec_head.proj)
    run(later, tmp_path / "windows", LoopConfig())
    assert not torch.equal(later.model.clip_rec_head.proj, student.clip_rec_head.proj)
    small = dataclasses.replace(EBSEG, steps=1)
    samples = EmojiSamples(paper_scenes(), SceneConfig(side=128, objects=(1, 2)))
    run(EbsegStage(small, stage.model, samples, stage.text), tmp_path / "ebseg", LoopConfig())
    trained = trained_model(tmp_path / "ebseg", TINY)
    assert torch.equal(trained.clip_rec_head.proj, student.clip_rec_head.proj)
    # a new schedule takes the decoder of an earlier one, and CLIP from where it is told
    again = ebseg_stage(tmp_path / "windows", paper_scenes(), nano_stage(TINY, steps=1), start=tmp_path / "ebseg")
    assert torch.equal(again.model.clip_rec_head.proj, later.model.clip_rec_head.proj)
    query = "sem_seg_head.predictor.query_feat.weight"
    assert torch.equal(again.model.state_dict()[query], trained.state_dict()[query])
    assert torch.equal(again.model.ov_classifier.bg_embed, trained.ov_classifier.bg_embed)  # learnt in stage 3
    # with finer patches of SAM too
    finer = dataclasses.replace(TINY, sam=dataclasses.replace(TINY.sam, patch=8))
    patched = ebseg_stage(tmp_path / "windows", paper_scenes(), nano_stage(finer, steps=1), start=tmp_path / "ebseg")
    assert torch.equal(patched.model.state_dict()[query], trained.state_dict()[query])
    assert patched.model.backbone.patch_embed.proj.weight.shape[-1] == 8
    write_weights(tmp_path / "ebseg", tmp_path / "tiny.safetensors", TINY)
    shipped = load_model(tmp_path / "tiny.safetensors", TINY)
    torch.testing.assert_close(shipped.clip_rec_head.proj, trained.clip_rec_head.proj, rtol=1e-3, atol=1e-4)
    with pytest.raises(CheckpointError, match="wanted 'distill'"):
        ebseg_stage(tmp_path / "clip", paper_scenes(), nano_stage(TINY, steps=1))
    with pytest.raises(CheckpointError, match="another config"):
        trained_model(tmp_path / "ebseg", dataclasses.replace(TINY, queries=7))


def test_region_accuracy_of_an_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """With text embeddings equal to what B says of a class's regions, B is right and the hits are counted."""
    model = EBSeg(TINY)
    text = F.normalize(torch.randn(len(CLASSES), TINY.clip.embedding_dim), dim=-1)

    def oracle(graphs: Any, images: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        _, labels = batch(paper_scenes("val"), range(8), SceneConfig(side=128))
        b = torch.zeros(*inside.shape[:2], TINY.clip.embedding_dim)
        for i, each in enumerate(labels):
            present = torch.unique(torch.from_numpy(each)).long()
            b[i, : len(present)] = text[present]
        return b, -b

    monkeypatch.setattr("ebseg_deploy.training.regions.region_embeddings", oracle)
    result = region_accuracy(model, paper_scenes("val"), text, scenes=8)
    assert (result.b_seen, result.b_new, result.d_seen, result.d_new) == (1, 1, 0, 0)


def test_mask_quality_of_perfect_and_of_merged_masks() -> None:
    """Masks that are the truth fit wholly; one that holds two things fits each by its share."""
    labels = torch.full((1, 16, 16), len(THINGS), dtype=torch.uint8)
    labels[0, :8, :8], labels[0, :8, 8:] = 0, 2  # a seen and a new thing
    masks = torch.stack([labels[0] == value for value in (0, 2, len(THINGS))]).float()[None] * 20 - 10
    embeddings = (torch.zeros(1, 3, 4),) * 3
    perfect = mask_quality(Observed(mask_logits=masks, embeddings=embeddings, labels=labels))
    assert (perfect.best_iou_seen, perfect.best_iou_new) == (1, 1)
    assert perfect.named_rightly.harmonic_miou == 1
    merged = torch.stack((masks[0, :2].amax(0), masks[0, 2]))[None]
    result = mask_quality(Observed(mask_logits=merged, embeddings=(torch.zeros(1, 2, 4),) * 3, labels=labels))
    assert (result.best_iou_seen, result.best_iou_new) == (0.5, 0.5)
    assert result.named_rightly.harmonic_miou == 0  # it got one of the two names


def test_mask_naming_asks_the_best_mask_of_each_thing() -> None:
    labels = torch.full((1, 16, 16), len(THINGS), dtype=torch.uint8)
    labels[0, :8, :8], labels[0, :8, 8:] = 0, 2  # a seen and a new thing
    half = (labels[0] == 0) & (torch.arange(16) < 4)  # a worse mask of the first
    masks = torch.stack((labels[0] == 2, half, labels[0] == 0)).float()[None] * 20 - 10
    model = EBSeg(TINY)
    text = F.normalize(torch.randn(len(CLASSES), TINY.clip.embedding_dim), dim=-1)
    right, other = text[[2, 5, 0]][None], text[[2, 0, 5]][None]  # the second is right of the worse mask alone
    said = mask_naming(Observed(mask_logits=masks, embeddings=(right, other, -right), labels=labels), model, text)
    assert said["A"] == (1, 1)
    assert said["B"] == (0, 1)
    assert said["D"] == (0, 0)
    same = mask_naming(Observed(mask_logits=masks, embeddings=(right,) * 3, labels=labels), model, text)
    assert same["balanced"] == (1, 1)


@pytest.mark.gpu
def test_a_step_on_the_gpu_equals_one_on_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU; PyTorch sees none")
    stages = [tiny_ebseg_stage(), tiny_ebseg_stage()]
    stages[1] = EbsegStage(EBSEG, stages[1].model, stages[1].samples, stages[1].text, device="cuda")
    cpu, gpu = (stage.step(0) for stage in stages)
    assert gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-3)
