"""CLIP's weights into EBSeg: open_clip's names to the published ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..model.config import EbsegConfig
from ..model.ebseg import EBSeg

_TRUNK = ("class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_pre.bias")
_HEAD = ("ln_post.weight", "ln_post.bias", "proj")


def ebseg_clip_state(clip: Mapping[str, Tensor], config: EbsegConfig) -> dict[str, Tensor]:
    """The part of an EBSeg state dict that comes from CLIP.

    Args:
        clip: state dict of open_clip's CLIP: the nano one, or OpenAI's ViT-B/16 or ViT-L/14@336.
        config: decides which blocks store their attention as qkv and proj.
    """
    state = {f"clip_visual_extractor.{name}": clip[f"visual.{name}"] for name in _TRUNK}
    state.update({f"clip_rec_head.{name}": clip[f"visual.{name}"] for name in _HEAD})
    for name, tensor in clip.items():
        if name.startswith("visual.transformer.resblocks."):
            number, _, rest = name.removeprefix("visual.transformer.resblocks.").partition(".")
            block = int(number)
            if block >= config.plain_blocks:
                rest = rest.replace("attn.in_proj_", "attn.qkv.").replace("attn.out_proj.", "attn.proj.")
            in_head = block >= config.first_head_block
            home = "clip_rec_head" if in_head else "clip_visual_extractor"
            place = block - config.first_head_block if in_head else block
            state[f"{home}.resblocks.{place}.{rest}"] = tensor
        elif not name.startswith("visual.") and name != "attn_mask":
            state[f"ov_classifier.{name}"] = tensor
    return state


def install_clip(model: EBSeg, clip: Mapping[str, Tensor]) -> None:
    """Copy CLIP's weights into the model.

    Raises:
        CheckpointError: the weights are of a CLIP of another shape.
    """
    try:
        state = ebseg_clip_state(clip, model.config)
    except KeyError as error:
        raise CheckpointError(f"CLIP weights: {error} is missing", cure="give open_clip's own state dict") from error
    wanted = {
        name
        for name in model.state_dict()
        if name.startswith(("clip_visual_extractor.", "clip_rec_head.", "ov_classifier."))
        and not name.endswith(("attn_mask", "bg_embed"))
    }
    own = model.state_dict()
    faults = sorted(wanted ^ state.keys()) + [
        f"{name} {tuple(state[name].shape)} wanted {tuple(own[name].shape)}"
        for name in sorted(wanted & state.keys())
        if state[name].shape != own[name].shape
    ]
    if faults:
        raise CheckpointError(
            f"CLIP weights do not fit {model.config.name}: {', '.join(faults[:5])}", cure="use the config of stage 1"
        )
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(state[name])
