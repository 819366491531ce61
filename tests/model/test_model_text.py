"""The text encoder against open_clip's own, and the identity that ties vocabularies to it."""

from __future__ import annotations

import copy

import pytest
import torch
from ebseg_deploy.model.ebseg import EBSeg
from ebseg_deploy.model.text import TextEncoder, TextTower, text_identity
from golden_files import golden_inputs
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from tiny_models import TINY_B, tiny_model
from torch.nn import functional as F

END = 49407


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(0)
    clip = TINY_B.clip
    model = CLIP(
        clip.embedding_dim,
        CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=16, image_size=32),
        CLIPTextCfg(width=clip.text_width, heads=clip.text_heads, layers=clip.text_layers),
        quick_gelu=True,
    ).eval()
    for parameter in model.parameters():  # open_clip's initial values are too small to tell
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def prompts() -> torch.Tensor:
    """Token rows of every length; what follows the end of text is zero, as the tokenizer leaves it."""
    tokens = torch.randint(1, 40000, (5, 77), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    for row, end in enumerate((1, 2, 9, 50, 76)):
        tokens[row, end] = END
        tokens[row, end + 1 :] = 0
    return tokens


@torch.no_grad()
def test_text_encoder_is_open_clips(clip: CLIP) -> None:
    tokens = prompts()
    found = TextEncoder(TextTower(clip, TINY_B))(tokens)
    torch.testing.assert_close(found, clip.encode_text(tokens.long(), normalize=True), rtol=0, atol=2e-6)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(5))


@torch.no_grad()
def test_what_follows_the_end_of_text_does_not_matter(clip: CLIP) -> None:
    encoder = TextEncoder(TextTower(clip, TINY_B))
    tokens = prompts()
    other = tokens.clone()
    other[0, 3:] = 777
    torch.testing.assert_close(encoder(other)[0], encoder(tokens)[0], rtol=0, atol=0)


def test_golden_text_is_normalised_and_has_its_background(seeded_b: EBSeg) -> None:
    _, text, _ = golden_inputs("480x640")
    background = seeded_b.ov_classifier.bg_embed
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(len(text)))
    torch.testing.assert_close(text[-1:], F.normalize(background, dim=-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", ["bg_embed", "logit_scale", "ln_final.bias", "token_embedding.weight"])
def test_identity_follows_every_tensor(key: str) -> None:
    tower = copy.deepcopy(tiny_model("tiny-nano").ov_classifier)
    before = text_identity(tower)
    assert text_identity(copy.deepcopy(tower)) == before
    with torch.no_grad():
        tensor = tower.get_parameter(key)
        tensor.view(-1)[0] += 1e-3
    assert text_identity(tower) != before


def test_identity_is_of_the_values_and_not_of_the_type() -> None:
    tower = copy.deepcopy(tiny_model("tiny-nano").ov_classifier)
    halved = tower.half()
    assert text_identity(halved) == text_identity(copy.deepcopy(halved).float())
