"""An engine, or two side by side, as one HTML page: where the work goes and in which types, without any network.

The builder's report has no times: without a GPU nothing was timed. Widths are multiply-adds, which is where the time of
a large product goes, and nothing of what a small or memory-bound layer costs. The page says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from ...contract import EngineSidecar, LayerRecord
from ...errors import ExportError
from .census import PRODUCTS, Census, check_engine_promise, difference, take_census

COLOURS = {
    "Int8": "#2a9d5c",
    "FP8": "#1b998b",
    "Half": "#3a7bd5",
    "BFloat16": "#7b5cd6",
    "Float": "#e07a2f",
}
OTHER_COLOUR = "#9aa0a6"
"""Of types that no matrix product has: Bool, Int32, …"""

WIDTH = 1000
"""Of a drawing, in its own units."""
LEAST_WIDTH = 0.6
"""Of a layer without counted work, so that it can be seen and pointed at."""
MOST_BLOCKS = 40
MOST_ROWS = 400

TIMELINE_NOTE = (
    "As wide as their multiply-adds; layers without counted work are slivers. Upper row: products, fused attentions "
    "taller; lower row: the rest; red marks: casts. These are no times."
)
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.name { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; } .cards div { background: var(--soft); border-radius: .5rem;
padding: .6rem 1rem; } .cards b { display: block; font-size: 1.3rem; }
svg { width: 100%; height: auto; display: block; margin: .4rem 0; border-radius: .3rem; background: var(--soft); }
.legend span { margin-right: 1.1rem; white-space: nowrap; } .swatch { display: inline-block; width: .8rem;
height: .8rem; border-radius: .15rem; margin-right: .35rem; vertical-align: -.1rem; }
.kept { color: #2a9d5c; } .broken { color: #d1495b; } .note { opacity: .75; font-size: .86rem; }
"""


def html_report(sidecar: EngineSidecar, other: EngineSidecar | None = None) -> str:
    """The page.

    Args:
        sidecar: with its layers.
        other: a second engine to hold against the first.
    """
    engines = [sidecar] if other is None else [sidecar, other]
    title = " against ".join(_name(each) for each in engines)
    body = [f"<h1>{escape(title)}</h1>"]
    if other is not None:
        body.append(_differences(sidecar, other))
    for each in engines:
        body.append(_engine(each, heading=len(engines) > 1))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n"
        "</html>\n"
    )


def _name(sidecar: EngineSidecar) -> str:
    return f"{sidecar.graph} {sidecar.size or ''} {sidecar.precision}".replace("  ", " ")


def _engine(sidecar: EngineSidecar, *, heading: bool) -> str:
    census = take_census(sidecar.layers)
    parts = [f"<h1>{escape(_name(sidecar))}</h1>" if heading else "", _facts(sidecar), _verdict(sidecar)]
    if not sidecar.layers:
        return "\n".join([*parts, "<p>The builder gave no layer report.</p>"])
    return "\n".join(
        [
            *parts,
            _cards(census),
            "<h2>Work by type</h2>",
            _legend(sidecar.layers),
            _bar(census.multiply_adds_by_type, 26),
            "<h2>Layers in their order</h2>",
            f'<p class="note">{TIMELINE_NOTE}</p>',
            _timeline(sidecar.layers),
            "<h2>Where the work is</h2>",
            _blocks(sidecar.layers),
            "<h2>Products</h2>",
            _products(sidecar.layers),
            "<h2>Casts</h2>",
            _casts(sidecar.layers),
        ]
    )


def _facts(sidecar: EngineSidecar) -> str:
    settings, memory = sidecar.settings, sidecar.memory
    lengths = ", ".join(f"{name} {each}" for name, each in settings.profile.items()) or "all fixed"
    rows = [
        ("model", sidecar.model),
        ("built with", f"{sidecar.target} {sidecar.tensorrt_version} on {sidecar.platform}"),
        ("compute capabilities", ", ".join(settings.compute_capabilities)),
        ("lengths, min:opt:max", lengths),
        ("plan", f"{sidecar.plan.bytes:,} bytes, sha256 {sidecar.plan.sha256}"),
        ("activations", _bytes(memory.activation_bytes)),
        ("built in", f"{sidecar.build_seconds:.1f} s, builder's peak {_bytes(memory.builder_peak_bytes)}"),
    ]
    return _table(("", ""), rows)


def _verdict(sidecar: EngineSidecar) -> str:
    try:
        check_engine_promise(sidecar)
    except ExportError as error:
        return f'<p class="broken">{escape(str(error))}</p>'
    return f'<p class="kept">Every product computes in a type that {escape(sidecar.precision)} promises.</p>'


def _cards(census: Census) -> str:
    shares = [(f"{census.share(kind):.1%}", f"of the work in {kind}") for kind in census.products_by_type]
    cards = [
        (str(census.layers), "layers"),
        (str(sum(census.products_by_type.values())), "products"),
        *shares,
        (str(census.fused_attentions), "fused attentions"),
        (str(census.casts), "casts"),
    ]
    return '<div class="cards">' + "".join(f"<div><b>{a}</b>{escape(b)}</div>" for a, b in cards) + "</div>"


def _colour(type_name: str | None) -> str:
    return COLOURS.get(type_name or "", OTHER_COLOUR)


def _legend(layers: Sequence[LayerRecord]) -> str:
    found = {layer.type for layer in layers}
    shown = [kind for kind in COLOURS if kind in found]
    swatches = [(_colour(kind), kind) for kind in shown] + [(OTHER_COLOUR, "other or none")]
    return '<p class="legend">' + "".join(_swatch(*each) for each in swatches) + "</p>"


def _swatch(colour: str, text: str) -> str:
    return f'<span><i class="swatch" style="background:{colour}"></i>{escape(text)}</span>'


def _rectangle(x: float, y: float, width: float, height: float, colour: str, title: str) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:g}" width="{width:.2f}" height="{height:g}" fill="{colour}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _svg(height: float, shapes: Iterable[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        + "".join(shapes)
        + "</svg>"
    )


def _bar(work: dict[str, int], height: float) -> str:
    """Shares of a whole, side by side."""
    total, x, shapes = sum(work.values()) or 1, 0.0, []
    for kind, count in work.items():
        width = WIDTH * count / total
        shapes.append(_rectangle(x, 0, width, height, _colour(kind), f"{kind}: {_work(count)}, {count / total:.1%}"))
        x += width
    return _svg(height, shapes, "share of multiply-adds by type")


def _timeline(layers: Sequence[LayerRecord]) -> str:
    total = sum(layer.multiply_adds or 0 for layer in layers) or 1
    free = WIDTH - LEAST_WIDTH * len(layers)
    x, shapes = 0.0, []
    scale = max(free, WIDTH / 4) / total
    widths = [LEAST_WIDTH + scale * (layer.multiply_adds or 0) for layer in layers]
    shrink = WIDTH / sum(widths)
    for layer, natural in zip(layers, widths, strict=True):
        width = natural * shrink
        title = _title(layer)
        if layer.role == "attention":
            shapes.append(_rectangle(x, 2, width, 68, _colour(layer.type), title))
        elif layer.role in PRODUCTS:
            shapes.append(_rectangle(x, 12, width, 58, _colour(layer.type), title))
        else:
            shapes.append(_rectangle(x, 74, width, 18, _colour(layer.type), title))
        if layer.role == "cast":
            shapes.append(_rectangle(x, 94, max(width, 1.2), 6, "#d1495b", title))
        x += width
    return _svg(100, shapes, "layers in the order of the engine")


def _title(layer: LayerRecord) -> str:
    nodes = ", ".join(layer.onnx_nodes[:3]) or layer.name
    return f"{nodes} · {layer.kind}, {layer.type or 'no type'} · {_work(layer.multiply_adds)}"


def _blocks(layers: Sequence[LayerRecord]) -> str:
    """Work of each part of the model, by type: a part is an ONNX node's place down to the numbered block."""
    work: dict[str, Counter[str]] = {}
    for layer in layers:
        if layer.multiply_adds:
            work.setdefault(_block(layer), Counter())[layer.type or "unknown"] += layer.multiply_adds
    total = sum(sum(each.values()) for each in work.values()) or 1
    heaviest = sorted(work.items(), key=lambda item: -sum(item[1].values()))
    rows = []
    for name, by_type in heaviest[:MOST_BLOCKS]:
        share = sum(by_type.values()) / total
        rows.append(
            f'<tr><td class="name">{escape(name)}</td><td class="number">{_work(sum(by_type.values()))}</td>'
            f'<td class="number">{share:.1%}</td><td style="width:40%">{_bar(dict(by_type), 40)}</td></tr>'
        )
    more = f'<p class="note">{len(heaviest) - MOST_BLOCKS} lighter parts are not listed.</p>'
    head = '<tr><th>part</th><th class="number">multiply-adds</th><th class="number">share</th><th>types</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>" + (more if len(heaviest) > MOST_BLOCKS else "")


def _block(layer: LayerRecord) -> str:
    """ "layers.3.mlp.c_proj/MatMul" -> "layers.3"; "sam_image_encoder/blocks.0.attn/MatMul" keeps its graph."""
    if not layer.onnx_nodes:
        return "unnamed"
    *places, _ = layer.onnx_nodes[0].split("/") if "/" in layer.onnx_nodes[0] else (layer.onnx_nodes[0], "")
    words = places[-1].split(".")
    end = next((i + 1 for i, word in enumerate(words) if word.isdecimal()), 1)
    return "/".join([*places[:-1], ".".join(words[:end])])


def _products(layers: Sequence[LayerRecord]) -> str:
    products = sorted((each for each in layers if each.role in PRODUCTS), key=lambda each: -(each.multiply_adds or 0))
    rows = [
        (
            ", ".join(layer.onnx_nodes[:2]) or layer.name,
            layer.role,
            layer.type or "unknown",
            _work(layer.multiply_adds),
            layer.tactic,
        )
        for layer in products[:MOST_ROWS]
    ]
    more = f'<p class="note">{len(products) - MOST_ROWS} lighter ones are not listed.</p>'
    table = _table(("nodes", "", "type", "multiply-adds", "tactic"), rows)
    return table + (more if len(products) > MOST_ROWS else "")


def _casts(layers: Sequence[LayerRecord]) -> str:
    rows = [
        (", ".join(layer.onnx_nodes[:2]) or layer.name, layer.type or "unknown")
        for layer in layers
        if layer.role == "cast"
    ]
    return _table(("nodes", "gives"), rows) if rows else "<p>None: every change of type is part of another layer.</p>"


def _differences(first: EngineSidecar, second: EngineSidecar) -> str:
    rows = difference(first, second)
    if not rows:
        return "<p>The two are made alike.</p>"
    table = _table(("", _name(first), _name(second)), rows[:MOST_ROWS])
    more = f'<p class="note">{len(rows) - MOST_ROWS} further differences are not listed.</p>'
    return "<h2>What differs</h2>" + table + (more if len(rows) > MOST_ROWS else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "<tr>" + "".join(f"<th>{escape(each)}</th>" for each in head) + "</tr>" if any(head) else ""
    lines = (
        f'<tr><td class="name">{escape(name)}</td>' + "".join(f"<td>{escape(each)}</td>" for each in rest) + "</tr>"
        for name, *rest in rows
    )
    return f"<table>{top}{''.join(lines)}</table>"


def _work(multiply_adds: int | None) -> str:
    return "work not known" if multiply_adds is None else f"{multiply_adds / 1e6:,.1f} M"


def _bytes(count: int | None) -> str:
    return "not said" if count is None else f"{count / (1 << 20):,.1f} MiB"
