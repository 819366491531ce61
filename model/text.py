"""The graph `text_encoder`: CLIP's text tower, and what ties a vocabulary to it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import causal_bias
from .clip_image import PlainLayer
from .config import EbsegConfig


class TextTower(nn.Module):
    """open_clip's text parts and EBSeg's learned background, under the published names (`ov_classifier.*`)."""

    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter
    transformer: Any
    ln_final: nn.LayerNorm
    text_projection: nn.Parameter
    logit_scale: nn.Parameter
    attn_mask: Tensor

    def __init__(self, clip: Any, config: EbsegConfig) -> None:
        super().__init__()
        self.token_embedding = clip.token_embedding
        self.positional_embedding = clip.positional_embedding
        self.transformer = clip.transformer
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.logit_scale = clip.logit_scale
        self.bg_embed = nn.Parameter(torch.zeros(1, config.clip.embedding_dim))
        self.register_buffer("attn_mask", causal_bias(config.clip.context_length))


class TextEncoder(nn.Module):
    """Token ids in, one unit embedding per prompt out."""

    places: Tensor

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.tower = tower
        self.layers = nn.ModuleList(PlainLayer(block) for block in tower.transformer.resblocks)
        length = tower.positional_embedding.shape[0]
        self.register_buffer("places", torch.arange(length, dtype=torch.int32), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, L) int32 -> (T, D). The end-of-text token is the largest id; its output is the prompt's embedding.

        Attention is causal, so what stands behind the end of text changes nothing: L may be cut from 77 to the
        longest prompt's, which for class names is some 12.
        """
        tower = self.tower
        length = tokens.shape[1]
        x = F.embedding(tokens, tower.token_embedding.weight) + tower.positional_embedding[:length]
        for layer in self.layers:
            x = layer(x, tower.attn_mask[:length, :length])
        end = tokens.float().argmax(dim=1, keepdim=True)
        pick = (self.places[:length] == end).to(x.dtype)  # (T, L), one 1 per row
        chosen = (pick[:, None] @ x)[:, 0]
        return F.normalize(tower.ln_final(chosen) @ tower.text_projection, dim=-1)


def text_identity(tower: TextTower) -> str:
    """SHA-256 over everything a vocabulary depends on: names, shapes and float32 values of the tower's tensors.

    Two checkpoints with the same text tower, background and logit scale share vocabularies.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        if name == "attn_mask":
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
