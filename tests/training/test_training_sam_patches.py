"""SAM's weights on a finer grid: what a coarser training knew is still there."""

from __future__ import annotations

import dataclasses

import torch
from ebseg_deploy.model.ebseg import EBSeg
from ebseg_deploy.training.initialise import initialise
from ebseg_deploy.training.sam_patches import with_patches_of
from paper_sprites import TINY

FINER = dataclasses.replace(TINY, sam=dataclasses.replace(TINY.sam, patch=8))
KERNEL, POSITION = "backbone.patch_embed.proj.weight", "backbone.pos_embed"
RELATIVE = "backbone.blocks.0.attn.rel_pos_h"


def trained() -> dict[str, torch.Tensor]:
    model = EBSeg(TINY)
    initialise(model, 0, sam=True)
    torch.manual_seed(1)
    state = model.state_dict()
    for name in state:
        if ".rel_pos_" in name:
            torch.nn.init.normal_(state[name])
    return state


def test_the_same_patches_change_nothing() -> None:
    state = trained()
    same = with_patches_of(state, TINY.sam)
    assert all(same[name] is tensor for name, tensor in state.items())


def test_a_plain_colour_gives_the_same_token_on_either_grid() -> None:
    state = trained()
    finer = with_patches_of(state, FINER.sam)
    colour = torch.tensor([0.3, -1.0, 2.0])
    assert finer[KERNEL].shape[-1] == 8
    torch.testing.assert_close(
        torch.einsum("ocij,c->o", finer[KERNEL], colour), torch.einsum("ocij,c->o", state[KERNEL], colour)
    )


def test_positions_keep_their_place() -> None:
    state = trained()
    side = state[POSITION].shape[1]
    ramp = (torch.arange(side) + 0.5) / side
    state[POSITION] = ramp[None, :, None, None].expand_as(state[POSITION]).contiguous()
    state[RELATIVE] = torch.arange(-(side - 1), side).float()[:, None].expand_as(state[RELATIVE]).contiguous()
    finer = with_patches_of(state, FINER.sam)
    rows = finer[POSITION][0, :, 0, 0]
    wanted = (torch.arange(2 * side) + 0.5) / (2 * side)
    a_sixth_of_a_step = (wanted[1] - wanted[0]).item() / 6
    # the ends have no neighbour beyond
    torch.testing.assert_close(rows[3:-3], wanted[3:-3], atol=a_sixth_of_a_step, rtol=0)
    table = finer[RELATIVE][:, 0]
    assert len(table) == 4 * side - 1
    assert (table.diff() >= 0).all()
    torch.testing.assert_close(table, -table.flip(0))  # a step up is as far as a step down


def test_a_windowed_blocks_positions_are_those_of_its_window() -> None:
    state = trained()
    config = dataclasses.replace(FINER.sam, global_blocks=(1, 2, 3))
    finer = with_patches_of(state, config)
    assert finer[RELATIVE] is state[RELATIVE]  # block 0, though its table is as long as the grid's
    assert len(finer[RELATIVE.replace("blocks.0", "blocks.1")]) > len(state[RELATIVE])


def test_a_finer_model_takes_them_whole() -> None:
    model = EBSeg(FINER)
    model.load_state_dict(with_patches_of(trained(), FINER.sam))
