"""CLIP's two towers while they are trained: open_clip's own classes, with what contrastive training adds around them.

Two things are ours. A picture smaller than the position grid takes a window of the grid at a random place, so that all
positions train at every picture size. And both towers' outputs pass a BatchNorm without affine parameters: without it
the text tower collapses (all classes at cosine 0.9999). After training the norms fold into the projections, exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.config import ClipConfig
from ..model.preprocess import CLIP_MEAN, CLIP_STD
from .prompts import encode_text


def clip_towers(config: ClipConfig) -> Any:
    """open_clip's CLIP with random weights, of the given widths."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(
        layers=config.layers,
        width=config.width,
        head_width=config.width // config.heads,
        patch_size=config.patch,
        image_size=config.image_size,
    )
    text = CLIPTextCfg(
        context_length=config.context_length,
        vocab_size=config.vocabulary_size,
        width=config.text_width,
        heads=config.text_heads,
        layers=config.text_layers,
    )
    return CLIP(config.embedding_dim, vision, text, quick_gelu=True)


class ContrastiveClip(nn.Module):
    """Towers and normalisers."""

    clip: Any
    """open_clip's CLIP."""
    mean: Tensor
    std: Tensor

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = clip_towers(config)
        self.image_norm = nn.BatchNorm1d(config.embedding_dim, affine=False)
        self.text_norm = nn.BatchNorm1d(config.embedding_dim, affine=False)
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).reshape(1, 3, 1, 1), persistent=False)

    @property
    def grid(self) -> int:
        """Side of the position grid, in patches."""
        return self.config.image_size // self.config.patch

    def tokens(self, images: Tensor, corner: tuple[int, int] = (0, 0)) -> Tensor:
        """Output tokens before the projection.

        Args:
            images: (B, 3, S, S) uint8, S a multiple of the patch and at most the image size.
            corner: row and column in the position grid of the pictures' upper left patch.

        Returns:
            (B, 1 + h·w, C), CLS first, after ln_post.
        """
        visual = self.clip.visual
        patches = visual.conv1((images.float() - self.mean) / self.std)
        height, width = patches.shape[2:]
        positions = visual.positional_embedding
        grid = positions[1:].reshape(self.grid, self.grid, -1)
        window = grid[corner[0] : corner[0] + height, corner[1] : corner[1] + width]
        cls = (visual.class_embedding + positions[0]).expand(len(images), 1, -1)
        x = torch.cat((cls, patches.flatten(2).transpose(1, 2) + window.flatten(0, 1)), dim=1)
        output: Tensor = visual.ln_post(visual.transformer(visual.ln_pre(x)))
        return output

    def encode_images(self, images: Tensor, corner: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, D) of the pictures: CLS's, and the mean of the patches'."""
        tokens = self.tokens(images, corner)
        both = torch.cat((tokens[:, 0], tokens[:, 1:].mean(1))) @ self.clip.visual.proj
        cls, pooled = F.normalize(self.image_norm(both.float()), dim=-1).chunk(2)
        return cls, pooled

    def embed_plain(self, images: Tensor, corner: tuple[int, int] = (0, 0)) -> Tensor:
        """CLS's unit embeddings without the norms: what a CLIP with folded weights gives. (B, D)."""
        cls = self.tokens(images, corner)[:, 0] @ self.clip.visual.proj
        return F.normalize(cls.float(), dim=-1)

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """(T, L) token ids -> (T, D) unit embeddings."""
        return F.normalize(self.text_norm(encode_text(self.clip, tokens).float()), dim=-1)

    @property
    def scale(self) -> Tensor:
        """Factor from cosine to logit, at most 100 as in CLIP."""
        scale: Tensor = self.clip.logit_scale.clamp(max=4.6052).exp()
        return scale


@torch.no_grad()
def folded(model: ContrastiveClip) -> dict[str, Tensor]:
    """The plain CLIP's state dict, with both norms folded into the layer norm's bias and the projection.

    (x P − m) / σ = (x + δ) P/σ with δ P = −m. m is a mean of rows x P, so δ exists; `statistics` must have been taken
    with the final weights.
    """
    state = {name: tensor.detach().clone() for name, tensor in model.clip.state_dict().items()}
    for norm, bias, projection in (
        (model.image_norm, "visual.ln_post.bias", "visual.proj"),
        (model.text_norm, "ln_final.bias", "text_projection"),
    ):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight = state[projection].double()
        shift = torch.linalg.lstsq(weight.T, -norm.running_mean.double(), driver="gelsd").solution
        sigma = (norm.running_var.double() + norm.eps).sqrt()
        state[bias] = (state[bias].double() + shift).float()
        state[projection] = (weight / sigma).float()
    state["logit_scale"] = model.scale.log().detach()
    return state


@torch.no_grad()
def statistics(model: ContrastiveClip, images: list[Tensor], tokens: Tensor) -> None:
    """Take both norms' statistics anew with the weights as they are, over batches of pictures and all prompts."""
    was_training = model.training
    model.train()
    for norm in (model.image_norm, model.text_norm):
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    for batch in images:
        model.encode_images(batch)
    model.encode_texts(tokens)
    for norm in (model.image_norm, model.text_norm):
        norm.momentum = 0.1
    model.train(was_training)
