"""A trained run as the file that is shipped: float16, safetensors, written atomically."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..errors import CheckpointError, InputError
from ..model.config import EBSEG_NANO, EbsegConfig
from .recipes import trained_model


def write_weights(stage_folder: Path, output: Path, model: EbsegConfig = EBSEG_NANO) -> None:
    """Write the weights of a stage 3 folder.

    Raises:
        InputError: the output is no .safetensors, or its folder is missing.
        CheckpointError: the folder holds no such weights, or a value does not fit float16.
    """
    if output.suffix != ".safetensors" or not output.parent.is_dir():
        raise InputError(f"{output}: wanted a .safetensors in a folder that exists", cure="choose another output")
    tensors = {}
    for name, tensor in trained_model(stage_folder, model).state_dict().items():
        half = tensor.detach().to(torch.float16).contiguous()
        if not torch.equal(half.isfinite(), tensor.isfinite()):
            raise CheckpointError(f"{name}: a value beyond float16's 65504", cure="the run has diverged: train anew")
        tensors[name] = half
    partial = output.with_name(f".{output.name}.partial")
    try:
        save_file(tensors, partial)
        os.replace(partial, output)
    except OSError as error:
        raise CheckpointError(
            f"{output}: cannot be written ({error.strerror})", cure="check folder and space"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
