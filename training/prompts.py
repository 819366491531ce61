"""Prompts of the emoji classes, tokenised for the text tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import VILD_TEMPLATES
from ..model.text import TextEncoder


def prompt_tokens(names: Sequence[str], templates: Sequence[str] = VILD_TEMPLATES) -> Tensor:
    """(templates, names, L) int64: token ids, cut after the longest prompt's end-of-text.

    The text tower is causal and reads the end-of-text token, so what stands behind it changes nothing: cutting 77
    places to some 12 is exact and six times cheaper.
    """
    import open_clip

    tokens = open_clip.tokenize([template.format(name) for template in templates for name in names])
    longest = int((tokens != 0).sum(1).max())
    table: Tensor = tokens[:, :longest].reshape(len(templates), len(names), longest)
    return table


def encode_text(clip: Any, tokens: Tensor) -> Tensor:
    """open_clip's `encode_text` for token rows shorter than the context: (T, L) -> (T, D), not normalised."""
    length = tokens.shape[1]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    end = x[torch.arange(len(tokens)), tokens.argmax(1)]
    embeddings: Tensor = clip.ln_final(end) @ clip.text_projection
    return embeddings


@torch.no_grad()
def class_embeddings(encoder: TextEncoder, names: Sequence[str]) -> Tensor:
    """(N, D) unit rows: the mean over the templates of each name's unit prompt embeddings, as in vocabularies."""
    import open_clip

    rows = []
    for name in names:
        tokens = open_clip.tokenize([template.format(name) for template in VILD_TEMPLATES])
        rows.append(F.normalize(encoder(tokens.int()).mean(0), dim=-1))
    return torch.stack(rows)
