"""Reading and writing weights: the published `.pth` layout and safetensors, every key accounted for."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .config import EbsegConfig
from .ebseg import EBSeg

ALIASES = {
    "clip_visual_extractor.ln_post.bias": "clip_rec_head.ln_post.bias",
    "clip_visual_extractor.ln_post.weight": "clip_rec_head.ln_post.weight",
    "clip_visual_extractor.proj": "clip_rec_head.proj",
}
"""Keys the published checkpoints store a second time, and the canonical key of the same tensor."""

LISTED = 8
"""How many keys an error names before it counts the rest."""


def load_model(path: str | os.PathLike[str], config: EbsegConfig) -> EBSeg:
    """The variant with a checkpoint's weights, ready for inference.

    Raises:
        CheckpointError: the file cannot be read, or its keys and shapes are not the variant's.
    """
    return model_from_state(read_state(path), config, source=os.fspath(path))


def model_from_state(state: Mapping[str, Tensor], config: EbsegConfig, *, source: str = "weights") -> EBSeg:
    """The variant with these tensors. Nothing is copied: the model holds the tensors it is given."""
    with torch.device("meta"):
        model = EBSeg(config)
    canonical = _check_keys(state, {name: t.shape for name, t in model.state_dict().items()}, config.name, source)
    model.load_state_dict(canonical, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors by key, from `.safetensors`, or from a `.pth` (its `model` entry, or a plain state dict)."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file", cure="give a .pth or .safetensors file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        except (SafetensorError, OSError, ValueError) as error:
            raise _unreadable(path, error) from error
    with path.open("rb") as file:
        start = file.read(1)
    if start and not start.startswith((pickle.PROTO, b"P")):  # a pickle, or a zip's PK
        raise CheckpointError(f"checkpoint {path}: not a file of PyTorch's", cure="give a .pth or .safetensors file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path}: holds objects other than tensors, which are not loaded because unpickling runs code",
            cure="save its `model` entry alone: torch.save({'model': state_dict}, 'weights.pth')",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"checkpoint {path}: no tensors by name", cure="wanted a state dict, or a dict with one under 'model'"
        )
    return {str(key): value for key, value in content.items()}


def published_state(model: EBSeg) -> dict[str, Tensor]:
    """The state dict as the published checkpoints store it, aliases included."""
    state = dict(model.state_dict())
    for alias, canonical in ALIASES.items():
        state[alias] = state[canonical]
    return state


def save_checkpoint(model: EBSeg, path: str | os.PathLike[str]) -> None:
    """Write a published-style `.pth` ({"model": …}) or, by suffix, `.safetensors`; atomically."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, partial)
        else:
            torch.save({"model": published_state(model)}, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint {path}: cannot be written: {error}", cure="check folder and space"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CheckpointError(f"checkpoint {path}: cannot be read: {reason}", cure="download or copy the file again")


def _check_keys(
    state: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], variant: str, source: str
) -> dict[str, Tensor]:
    """Canonical keys with float32 tensors, or one error that lists all that is wrong."""
    faults = []
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted and key not in ALIASES]
    shapes = [
        f"{key} {tuple(state[key].shape)} wanted {tuple(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    types = [f"{key} {state[key].dtype}" for key in wanted if key in state and not state[key].dtype.is_floating_point]
    differing = [
        alias
        for alias, canonical in ALIASES.items()
        if alias in state and canonical in state and not torch.equal(state[alias], state[canonical])
    ]
    for label, keys in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("mis-shaped", shapes),
        ("not floating point", types),
        ("alias differs from its original", differing),
    ):
        if keys:
            more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
            faults.append(f"{len(keys)} {label}: {', '.join(keys[:LISTED])}{more}")
    if faults:
        raise CheckpointError(
            f"{source} is not a checkpoint of {variant}: {'; '.join(faults)}",
            cure="check --model, or save the model's own state dict",
        )
    return {key: state[key].float() for key in wanted}
