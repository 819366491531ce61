"""One call from what a user asks for to a bundle on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..contract import CANVAS_DIVISOR, Size
from ..errors import InputError
from ..model.checkpoint import load_model
from ..model.config import EbsegConfig, config_named
from ..model.ebseg import EBSeg
from ..model.shipped import shipped_weights
from ..runtime.bundle import Bundle
from ..runtime.hashing import file_sha256
from .bundle_files import Progress
from .bundle_writer import ExportConfig, export_bundle


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What `ebseg export` was asked for."""

    model: str
    output: Path
    checkpoint: Path | None = None
    """Weights; None takes the weights that ship with the variant."""
    seeded: bool = False
    """Take weights from the recipe in model.seeded instead."""
    sizes: tuple[Size, ...] = ()
    """Canvases; none takes the variant's default_canvas, a square."""
    batch: int = 1
    """Pictures per run, or the most of them."""
    dynamic_batch: bool = False
    overwrite: bool = False
    threads: int | None = None
    """Threads for torch and ONNX Runtime; None takes all cores."""
    command: str = ""
    """For the provenance."""

    def __post_init__(self) -> None:
        for size in self.sizes:
            if size.height % CANVAS_DIVISOR or size.width % CANVAS_DIVISOR:
                up = [-(-side // CANVAS_DIVISOR) * CANVAS_DIVISOR for side in (size.height, size.width)]
                raise InputError(
                    f"--size {size}: sides must be multiples of {CANVAS_DIVISOR}", cure=f"for example {up[0]}x{up[1]}"
                )
        if self.dynamic_batch and self.batch < 2:
            raise InputError("--dynamic-batch: 1 picture at most is no range", cure="give the most, as --batch 8")
        if len(set(self.sizes)) < len(self.sizes):
            raise InputError(f"--size: {', '.join(map(str, self.sizes))} has a size twice", cure="give each once")


def export_checkpoint(request: ExportRequest, *, progress: Progress = lambda step, done, total: None) -> Bundle:
    """Load the weights and write the bundle.

    Raises:
        InputError: an unknown model, a size that no canvas can have, or no weights to take.
        CheckpointError: the weights do not fit the model.
        ExportError: see bundle_writer.export_bundle.
    """
    config = config_named(request.model)
    if os.path.exists(request.output) and not request.overwrite:
        raise InputError(f"output {request.output} exists", cure="give --overwrite, or another -o")
    if request.threads is not None:
        import torch

        torch.set_num_threads(request.threads)
    progress("loading weights", 0, 1)
    model, provenance = _weights(request, config)
    sizes = request.sizes or (Size(height=config.default_canvas, width=config.default_canvas),)
    return export_bundle(
        model,
        request.output,
        ExportConfig(
            sizes=sizes,
            batch=request.batch,
            dynamic_batch=request.dynamic_batch,
            overwrite=request.overwrite,
            threads=request.threads,
        ),
        provenance={**provenance, "command": request.command} if request.command else provenance,
        progress=progress,
    )


def _weights(request: ExportRequest, config: EbsegConfig) -> tuple[EBSeg, dict[str, str]]:
    if request.seeded:
        from ..model.seeded import seeded_model

        return seeded_model(config), {"weights": "seeded (untrained; see model/seeded.py)"}
    checkpoint = shipped_weights(config) if request.checkpoint is None else request.checkpoint
    model = load_model(checkpoint, config)
    return model, {"weights": checkpoint.name, "weights_sha256": file_sha256(checkpoint)}
