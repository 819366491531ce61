"""`ebseg train`: the stages of training, and what stands around them, one verb each."""

from __future__ import annotations

import click

from .lazy import LazyGroup, LazyVerb

VERBS = {
    "fetch-data": LazyVerb("ebseg_deploy.cli.train_fetch_data", "Fetch the sprites of the emoji scenes (npm)."),
    "clip": LazyVerb("ebseg_deploy.cli.train_clip", "Stage 1: pictures and prompts, contrastively."),
    "distill": LazyVerb("ebseg_deploy.cli.train_distill", "Stage 2: CLIP learns to say what a region shows."),
    "windows": LazyVerb("ebseg_deploy.cli.train_windows", "Stage 2b: CLIP learns windows' captions."),
    "ebseg": LazyVerb("ebseg_deploy.cli.train_ebseg", "Stage 3: masks of the seen classes, with SSC."),
    "finetune": LazyVerb("ebseg_deploy.cli.train_finetune", "Stage 3 for B, L or nano on your own label maps."),
    "tune-balance": LazyVerb("ebseg_deploy.cli.train_tune_balance", "Choose α, β and γ on the validation split."),
    "ablate": LazyVerb("ebseg_deploy.cli.train_ablate", "A, B, D, A + B and balanced, of trained decoders."),
    "parts": LazyVerb("ebseg_deploy.cli.train_parts", "Naming and masks apart: where a decoder loses."),
    "finish": LazyVerb("ebseg_deploy.cli.train_finish", "Write a run's weights as one fp16 .safetensors."),
    "plot": LazyVerb("ebseg_deploy.cli.train_plot", "Draw a run's curves."),
}


@click.group(cls=LazyGroup, lazy_verbs=VERBS)
def command() -> None:
    """Train EBSeg-nano on emoji scenes: fetch-data, clip, distill, windows, ebseg, tune-balance, finish.

    \b
    Every stage has a folder of its own in the run folder (-r), writes checkpoints there, and goes on from the last
    one when its command is given again; Ctrl-C or SIGTERM stops it after the running step, with a checkpoint.
    """
