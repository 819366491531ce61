"""`ebseg train finetune`: EBSeg's training on your own pictures and label maps."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from .train_options import run_stage, set_threads


@click.command()
@click.option("--model", "model_name", required=True, help="ebseg-b, ebseg-l or ebseg-nano.")
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="Weights to begin with.")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Folder of the pictures.")
@click.option("--labels", type=click.Path(path_type=Path), required=True, help="Folder of label PNGs; 255: ignored.")
@click.option("--names", type=click.Path(path_type=Path), required=True, help="Class names, one a line, label order.")
@click.option("-r", "--run", "folder", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option("--steps", type=click.IntRange(min=1), default=120_000, show_default=True, help="Length of the schedule.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Pictures per step.")
@click.option("--size", type=click.IntRange(min=32), default=640, show_default=True, help="Side of the crop.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-4,
    show_default=True,
    help="8e-5 was used for ebseg-l.",
)
@click.option("--ssc", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Weight of SSC; 0: without.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--bf16/--fp32", default=False, show_default=True, help="Autocast to bfloat16.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of crops and sampled points.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop after so many steps of this call.")
@click.option("--checkpoint-seconds", type=click.FloatRange(min=0), default=180.0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; all cores by default.")
@click.option("--json", "as_json", is_flag=True, help="Where the run stands, machine-readable, on stdout.")  # fmt: skip
def command(
    model_name: str,
    checkpoint: Path,
    images: Path,
    labels: Path,
    names: Path,
    folder: Path,
    steps: int,
    batch: int,
    size: int,
    learning_rate: float,
    ssc: float,
    device: str,
    bf16: bool,
    seed: int,
    max_steps: int | None,
    checkpoint_seconds: float,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train EBSeg-B, -L or nano on pictures and label maps of your own, from a checkpoint.

    The published recipe: both encoders frozen but for their position embeddings, AdamW, poly schedule, SSC. B and L
    want a GPU. `ebseg train finish RUN/finetune --model …` writes the weights.
    """
    from ..model.checkpoint import load_model
    from ..model.config import config_named
    from ..runtime.class_names import read_classes
    from ..training.ebseg_stage import EbsegStage, EbsegStageConfig
    from ..training.losses import LossConfig
    from ..training.prompts import class_embeddings
    from ..training.samples import CropConfig, FolderSamples

    set_threads(threads)
    if size % 32:
        raise InputError(f"--size {size}: wanted a multiple of 32", cure=f"for example {size - size % 32 or 32}")
    _check_device(device)
    variant = config_named(model_name)
    classes = tuple(entry.name for entry in read_classes(names))
    crop = CropConfig(size=size, shortest=(size // 2, size * 2))
    samples = FolderSamples(images, labels, classes, crop, seed=seed)
    model = load_model(checkpoint, variant)
    config = EbsegStageConfig(
        model=variant, size=size, steps=steps, batch=batch, learning_rate=learning_rate, bf16=bf16,
        loss=LossConfig(structure=ssc), seed=seed,
    )  # fmt: skip
    stage = EbsegStage(config, model, samples, class_embeddings(model.text_encoder(), classes), device=device)
    run_stage(stage, folder / "finetune", max_steps=max_steps, checkpoint_seconds=checkpoint_seconds, as_json=as_json)


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(f"--device {device}: no such device", cure="give cpu, cuda or cuda:N") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"--device {device}: PyTorch sees no CUDA GPU", cure="see `ebseg doctor`, or give --device cpu"
        )
