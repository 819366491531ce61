"""Checkpoints that survive a kill: written beside, flushed, then renamed; read without pickle's arbitrary code.

A checkpoint holds a stage's name, its config, the step, the stage's state and the random generators' states, so that a
resumed run gives the same numbers as one that was never stopped.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError

LAST = "last.pt"
_FORMAT = 1


def save_checkpoint(path: Path, *, stage: str, config: dict[str, Any], step: int, state: dict[str, Any]) -> None:
    """Write atomically: after a kill or on a full disk, `path` is the last good checkpoint, whole.

    Args:
        path: the checkpoint file.
        stage: name of the stage, compared on reading.
        config: plain values, compared on reading.
        step: optimizer steps done.
        state: tensors and plain values in dicts and lists.

    Raises:
        CheckpointError: the file cannot be written.
    """
    content = {
        "format": _FORMAT,
        "stage": stage,
        "config": config,
        "step": step,
        "state": state,
        "rng": torch.get_rng_state(),
    }
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=".pt")
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns ENOSPC into RuntimeError
        raise CheckpointError(
            f"{path}: checkpoint of step {step} could not be written ({error})",
            cure="free space on the disk and resume: the checkpoint before it is intact",
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def load_checkpoint(path: Path, *, stage: str, config: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Read a checkpoint and restore torch's random generator.

    Args:
        path: the checkpoint file.
        stage: the stage it must belong to.
        config: when given, the config it must have been made with.

    Returns:
        The step and the stage's state.

    Raises:
        CheckpointError: missing, damaged, of another stage or of another config.
    """
    content = read_checkpoint(path)
    if content["stage"] != stage:
        raise CheckpointError(
            f"{path}: checkpoint of stage {content['stage']!r}, wanted {stage!r}", cure="give that stage's run folder"
        )
    if config is not None and content["config"] != config:
        differing = sorted(
            key for key in {*config, *content["config"]} if config.get(key) != content["config"].get(key)
        )
        raise CheckpointError(
            f"{path}: made with another config ({', '.join(differing)} differ)",
            cure="use the options it was made with (config.json beside it), or another run folder",
        )
    torch.set_rng_state(content["rng"])
    return content["step"], content["state"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The whole content of a checkpoint, without touching any generator. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint", cure="run the stage that makes it first")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip raises RuntimeError, EOFError, UnpicklingError, …
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({type(error).__name__})", cure="delete it and train again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a training checkpoint of format {_FORMAT}", cure="train again")
    return content
