"""`ebseg inspect` of engines: the sidecar, and a census of what the layers compute in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..contract import EngineSidecar
    from ..export.engines.census import Census

MOST_PRODUCTS = 12
"""How many of the heaviest products the table lists; JSON lists every layer."""


def show_engine(path: Path, as_json: bool) -> None:
    """Print what the sidecar says, the census, and whether the precision's promise is kept."""
    import msgspec

    from ..export.engines.census import take_census
    from .tables import bytes_text, print_facts, print_json, print_table

    sidecar = _sidecar(path)
    census, broken = take_census(sidecar.layers), _broken_promise(sidecar)
    if as_json:
        facts = {"kind": "engine", "path": str(path), "census": msgspec.to_builtins(census), "broken_promise": broken}
        print_json({**facts, **msgspec.to_builtins(sidecar)})
        return
    settings, memory = sidecar.settings, sidecar.memory
    rows = [
        ("graph", f"{sidecar.graph} of {sidecar.model}"),
        ("canvas", sidecar.size or "every"),
        ("precision", sidecar.precision),
        ("built with", f"{sidecar.target} {sidecar.tensorrt_version} on {sidecar.platform}"),
        ("compute capabilities", ", ".join(settings.compute_capabilities)),
        *((f"{name}, min:opt:max", lengths) for name, lengths in settings.profile.items()),
        ("TF32", "allowed" if settings.tf32 else "off"),
        ("memory asked for in a run", "none: a run can be captured" if settings.static_memory else "up to TensorRT"),
        ("plan", f"{bytes_text(sidecar.plan.bytes)}, sha256 {sidecar.plan.sha256}"),
        ("weights", _bytes(memory.weights_bytes)),
        ("activations", _bytes(memory.activation_bytes)),
        ("built in", f"{sidecar.build_seconds:.1f} s, builder's peak {_bytes(memory.builder_peak_bytes)}"),
        *((f"source {file}", sha256) for file, sha256 in sidecar.source.items()),
        *sorted(sidecar.provenance.items()),
    ]
    print_facts(f"Engine {path}", rows)
    if sidecar.layers:
        _print_census(census)
        heaviest = sorted(sidecar.layers, key=lambda layer: -(layer.multiply_adds or 0))[:MOST_PRODUCTS]
        products = [
            (layer.role, layer.type, f"{layer.multiply_adds / 1e6:.1f}", ", ".join(layer.onnx_nodes[:2]) or layer.name)
            for layer in heaviest
            if layer.multiply_adds
        ]
        if products:
            print_table("Heaviest products", ("role", "type", "million multiply-adds", "nodes"), products)
    kept = [
        (name, each.pattern, each.precision, each.nodes, each.reason)
        for name, record in sidecar.compute.items()
        if record is not None
        for each in record.kept
    ]
    if kept:
        print_table("What the recipe keeps", ("graph", "ONNX nodes", "in", "nodes", "reason"), kept)
    sides = (("in", sidecar.spec.inputs), ("out", sidecar.spec.outputs))
    tensors = [
        (side, tensor.name, tensor.dtype, " × ".join(map(str, tensor.shape))) for side, each in sides for tensor in each
    ]
    print_table("Tensors", ("", "tensor", "type", "shape"), tensors)
    click.echo(broken or f"Every product computes in a type that {sidecar.precision} promises.")


def show_difference(path: Path, other: Path, as_json: bool) -> None:
    """Print what differs between two engines."""
    from ..export.engines.census import difference
    from .tables import print_json, print_table

    rows = difference(_sidecar(path), _sidecar(other))
    if as_json:
        print_json([{"what": what, "first": first, "second": second} for what, first, second in rows])
    elif rows:
        print_table(f"{path} and {other}", ("", path.name, other.name), rows)
    else:
        click.echo(f"{path} and {other} are made alike")


def write_page(path: Path, other: Path | None, page: Path, as_json: bool) -> None:
    """Write an HTML page about an engine, or about two; with `as_json`, stdout is for the JSON alone."""
    from ..errors import InputError
    from ..export.engines.html_report import html_report
    from ..runtime.atomic_write import write_atomically

    text = html_report(_sidecar(path), None if other is None else _sidecar(other))
    try:
        write_atomically(page, text.encode("utf-8"))
    except OSError as error:
        raise InputError(
            f"--html {page}: {error.strerror}", cure="give a file in a folder that can be written"
        ) from error
    click.echo(f"{page}: open it in a browser", err=as_json)


def _sidecar(path: Path) -> EngineSidecar:
    """The sidecar; layers that it lacks, as those of engines built by script do, come from the log beside the plan."""
    import msgspec

    from ..export.engines.layer_report import read_layers
    from ..runtime.engine_file import read_sidecar

    sidecar = read_sidecar(path)
    log = path.with_suffix(".build.log")
    if sidecar.layers or not log.is_file():
        return sidecar
    with log.open(encoding="utf-8", errors="replace") as lines:
        return msgspec.structs.replace(sidecar, layers=read_layers(lines))


def _broken_promise(sidecar: EngineSidecar) -> str | None:
    from ..errors import ExportError
    from ..export.engines.census import check_engine_promise

    try:
        check_engine_promise(sidecar)
    except ExportError as error:
        return str(error)
    return None


def _print_census(census: Census) -> None:
    from .tables import print_table

    kinds = dict.fromkeys([*census.products_by_type, *census.layers_by_type])
    rows = [
        (
            kind,
            census.layers_by_type.get(kind, 0),
            census.products_by_type.get(kind, 0),
            f"{census.share(kind):.1%}" if census.products_by_type.get(kind) else "-",
        )
        for kind in kinds
    ]
    title = f"{census.layers} layers, {census.fused_attentions} fused attentions, {census.casts} casts"
    print_table(title, ("type", "layers", "products", "share of products' work"), rows)


def _bytes(count: int | None) -> str:
    from .tables import bytes_text

    return "not said" if count is None else bytes_text(count)
