"""`ebseg build`: a bundle's graphs as TensorRT engines."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..contract import ENGINE_TARGETS, GRAPH_NAMES, GraphName
from ..errors import InputError
from .progress import step_progress

if TYPE_CHECKING:
    from ..contract import EngineTarget
    from ..export.engines.build import Engine
    from ..export.engines.census import Census

UNITS = {"": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """An option's callback: "2GiB", "512MiB" or a plain number to bytes."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]+)?)\s*([KMG]iB)?", value.strip(), re.IGNORECASE)
    count = int(float(match[1]) * UNITS[(match[2] or "").upper()]) if match else 0
    if count < 1:
        raise click.BadParameter(f"{value!r} is no amount of memory; give for example 2GiB or 512MiB", ctx, param)
    return count


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", type=click.Choice(ENGINE_TARGETS), required=True, help="Which builder.")
@click.option("--precision", help="Which of the bundle's precisions; its first by default.")
@click.option(
    "--compute-capability",
    metavar="LIST",
    help="GPUs, as 8.6,8.9,12.0. tensorrt-rtx: these three by default; tensorrt: the GPU at hand.",
)
@click.option("--batch", metavar="MIN:OPT:MAX", help="Pictures per run, of a bundle with a dynamic batch.")
@click.option("--classes", metavar="MIN:OPT:MAX", help="Classes in a vocabulary.  [default: 1:150:1024]")
@click.option("--prompts", metavar="MIN:OPT:MAX", help="Prompts per run of the text encoder.  [default: 1:14:64]")
@click.option("--tokens", metavar="MIN:OPT:MAX", help="Tokens in a prompt.  [default: 2:16:77]")
@click.option("--workspace", metavar="BYTES", callback=parse_bytes, help="Scratch memory a layer may take: 2GiB.")
@click.option("--tf32", is_flag=True, help="Let FP32 products run in TF32 (10 bits of mantissa).")
@click.option(
    "--keep-fp32", multiple=True, metavar="PATTERN", help="ONNX nodes that may stay FP32, as 'blocks.1*/mlp*'."
)
@click.option("--merged", is_flag=True, help="One engine from picture to class probabilities, and the text encoder.")
@click.option("--graph", "graphs", multiple=True, type=click.Choice(GRAPH_NAMES), help="Only this graph; repeatable.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder; engines/TARGET/PRECISION in the bundle by default."
)
@click.option(
    "--timing-cache",
    metavar="FILE|none",
    help="tensorrt: where measured kernel times are kept.  [default: timing.cache beside the engines]",
)
@click.option("--rebuild", is_flag=True, help="Build what is there already, too.")
@click.option("--no-preflight", is_flag=True, help="Start with little memory, too.")
@click.option("--script", is_flag=True, help="Build nothing: write a folder to build from on another device.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable results on stdout.")
def command(
    bundle: Path,
    target: EngineTarget,
    precision: str | None,
    compute_capability: str | None,
    batch: str | None,
    classes: str | None,
    prompts: str | None,
    tokens: str | None,
    workspace: int | None,
    tf32: bool,
    keep_fp32: tuple[str, ...],
    merged: bool,
    graphs: tuple[GraphName, ...],
    output: Path | None,
    timing_cache: str | None,
    rebuild: bool,
    no_preflight: bool,
    script: bool,
    as_json: bool,
) -> None:
    """Build TensorRT engines from a bundle's graphs.

    Each graph is built in a process of its own and becomes a plan with a sidecar (.plan.json) and the builder's log.
    Engines that are there already, of the same graph and settings, are kept. A build whose layers do not compute in
    the precision's types fails. tensorrt-rtx needs no GPU to build.
    """
    from ..export.engines.build import build_engines
    from ..export.engines.plan import BuildRequest
    from ..export.engines.profiles import parse_range
    from ..export.engines.targets import parse_capabilities

    given = {"batch": batch, "classes": classes, "prompts": prompts, "tokens": tokens}
    request = BuildRequest(
        bundle=bundle,
        target=target,
        precision=precision,
        compute_capabilities=parse_capabilities(compute_capability) if compute_capability else (),
        ranges={name: parse_range(name, text) for name, text in given.items() if text is not None},
        workspace_bytes=workspace,
        tf32=tf32,
        keep_fp32=keep_fp32,
        graphs=graphs,
        merged=merged,
        timing_cache=Path(timing_cache) if timing_cache not in (None, "none") else None,
        use_timing_cache=timing_cache != "none",
        output=output,
        rebuild=rebuild,
        preflight=not no_preflight,
        command=shlex.join(["ebseg", *sys.argv[1:]]),
    )
    if script:
        from ..export.engines.script import write_script

        if output is None:
            raise InputError("--script: no folder to write to", cure="give -o FOLDER")
        folder = write_script(request, output)
        click.echo(f"{folder}: copy it to the device and see its README.md")
        return
    with step_progress("building", remaining=True) as report:
        engines = build_engines(request, progress=report)
    _show(engines, as_json)


def _show(engines: list[Engine], as_json: bool) -> None:
    from ..export.engines.census import take_census
    from .tables import bytes_text, print_json, print_table

    censuses = [take_census(engine.sidecar.layers) for engine in engines]
    if as_json:
        import msgspec

        print_json(
            [
                {
                    "plan": str(engine.plan),
                    "kept": engine.kept,
                    "census": msgspec.to_builtins(census),
                    **{
                        key: value
                        for key, value in msgspec.to_builtins(engine.sidecar).items()
                        if key not in ("layers", "plan", "schema_version")
                    },
                    "bytes": engine.sidecar.plan.bytes,
                    "sha256": engine.sidecar.plan.sha256,
                }
                for engine, census in zip(engines, censuses, strict=True)
            ]
        )
        return
    first = engines[0].sidecar
    print_table(
        f"Engines in {engines[0].plan.parent}: {first.precision}, {first.target} {first.tensorrt_version}, "
        f"compute capability {', '.join(first.settings.compute_capabilities)}",
        (
            "engine",
            "plan",
            "seconds",
            "builder's peak",
            "products, share of their work",
            "fused attention",
            "casts",
            "",
        ),
        [
            (
                engine.plan.name,
                bytes_text(engine.sidecar.plan.bytes),
                f"{engine.sidecar.build_seconds:.1f}",
                bytes_text(peak) if (peak := engine.sidecar.memory.builder_peak_bytes) is not None else "not said",
                _products(census),
                census.fused_attentions,
                census.casts,
                "kept" if engine.kept else "built",
            )
            for engine, census in zip(engines, censuses, strict=True)
        ],
    )


def _products(census: Census) -> str:
    counts = census.products_by_type
    if len(counts) < 2:
        return next((f"{count} {name}" for name, count in counts.items()), "none")
    return ", ".join(f"{count} {name} ({census.share(name):.0%})" for name, count in counts.items())
