"""`ebseg bench`: the benchmarks, one verb each."""

from __future__ import annotations

import click

from .lazy import LazyGroup, LazyVerb

BENCHMARKS = {
    "latency": LazyVerb("ebseg_deploy.cli.bench_latency", "Time every graph and the whole way, and the peak memory."),
    "accuracy": LazyVerb("ebseg_deploy.cli.bench_accuracy", "mIoU of seen and new classes, and what is confused."),
    "precision": LazyVerb("ebseg_deploy.cli.bench_precision", "Recipes side by side: size, latency, agreement, mIoU."),
    "compare": LazyVerb("ebseg_deploy.cli.bench_compare", "Time a bundle against the published order in eager torch."),
}


@click.group(cls=LazyGroup, lazy_verbs=BENCHMARKS)
def command() -> None:
    """Measure a bundle on this machine."""
