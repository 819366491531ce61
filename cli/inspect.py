"""`ebseg inspect`: what is in a bundle, a vocabulary, an ONNX graph or an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError

if TYPE_CHECKING:
    from ..contract import TensorSpec
    from ..runtime.bundle import Bundle
    from ..runtime.vocabulary import Vocabulary

MOST_OPERATORS = 12
"""How many kinds of operator the table of a graph lists; JSON lists all."""


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="PLAN", help="Another engine: show what differs.")
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Of engines: write a page that shows all of it."
)
@click.option("--json", "as_json", is_flag=True, help="Everything, machine-readable, on stdout.")
def command(path: Path, against: Path | None, html: Path | None, as_json: bool) -> None:
    """Show what is in a bundle (folder or zip), a vocabulary (.safetensors), a graph (.onnx), an engine (.plan) or a
    ranges file of `ebseg calibrate` (.json).

    Of an engine: how many of its layers compute in which type, by the builder's own report.

    Nothing is run and no hash is recomputed: `ebseg verify` does that.
    """
    if not path.exists():
        raise InputError(
            f"{path}: no such file or folder", cure="give a bundle, a .safetensors, an .onnx or a .plan file"
        )
    if against is not None and path.suffix != ".plan":
        raise InputError(f"--against: {path} is no engine", cure="give two .plan files")
    if html is not None and path.suffix != ".plan":
        raise InputError(f"--html: {path} is no engine", cure="give a .plan file")
    if path.suffix == ".plan":
        from .inspect_engine import show_difference, show_engine, write_page

        if html is not None:
            write_page(path, against, html, as_json)
        if html is None or as_json:
            if against is None:
                show_engine(path, as_json)
            else:
                show_difference(path, against, as_json)
    elif path.suffix == ".json" and path.is_file():
        from .inspect_ranges import show_ranges

        show_ranges(path, as_json)
    elif path.suffix == ".onnx":
        _show_graph(path, as_json)
    elif path.suffix == ".safetensors":
        from ..runtime.vocabulary import Vocabulary

        _show_vocabulary(path, Vocabulary.load(path), as_json)
    else:
        from ..runtime.bundle import Bundle

        _show_bundle(Bundle.open(path, check_hashes=False), as_json)


def _show_bundle(bundle: Bundle, as_json: bool) -> None:
    import msgspec

    from .tables import bytes_text, print_facts, print_json, print_table

    manifest = bundle.manifest
    total = sum(record.bytes for record in manifest.files.values())
    if as_json:
        print_json({"kind": "bundle", "path": str(bundle.source), "bytes": total, **msgspec.to_builtins(manifest)})
        return
    model = manifest.model
    rows = [
        ("model", model.name),
        ("canvases", ", ".join(map(str, manifest.sizes))),
        ("pictures per run", f"1 to {manifest.batch}" if bundle.dynamic_batch else manifest.batch),
        ("queries", model.queries),
        ("embedding width", model.embedding_dim),
        ("CLIP", f"width {model.clip_width}, {model.clip_heads} heads, patch {model.clip_patch}"),
        ("CLIP input scale", model.clip_input_scale),
        ("SAM", f"width {model.sam_width}, patch {model.sam_patch}"),
        ("α, β, γ", f"{model.alpha:g}, {model.beta:g}, {model.gamma:g}"),
        ("logit scale", f"{model.logit_scale:g}"),
        ("text encoder", manifest.text.encoder_sha256),
        ("templates", len(manifest.text.templates)),
        ("files", f"{len(manifest.files)}, {bytes_text(total)}"),
        ("schema version", manifest.schema_version),
    ]
    print_facts(f"Bundle {bundle.source}", rows)
    graphs = []
    for record in manifest.graphs:
        size = sum(manifest.files[file].bytes for file in (record.file, record.weights) if file)
        worst = max(record.parity, key=lambda name: record.parity[name], default=None)
        parity = "not checked" if worst is None else f"{record.parity[worst]:.1e} ({worst})"
        emulated = record.compute is not None and record.compute.emulated
        precision = f"{record.precision}, emulated" if emulated else record.precision
        share = None if record.compute is None else record.compute.macs_share
        if share is not None:
            precision = f"{precision}, {100 * share:.1f} % of MACs"
        graphs.append((record.name, precision, record.size or "every", record.opset, bytes_text(size), parity))
    derived = any(record.compute is not None for record in manifest.graphs)
    against = "largest |Δ| to FP32" if derived else "largest |Δ| to torch"
    print_table("Graphs", ("graph", "precision", "canvas", "opset", "size", against), graphs)
    kept = [
        (record.name, record.size or "every", each.nodes, each.precision, each.pattern, each.reason)
        for record in manifest.graphs
        if record.compute is not None
        for each in record.compute.kept
    ]
    if kept:
        print_table("In a wider type than their graph", ("graph", "canvas", "nodes", "type", "pattern", "reason"), kept)
    tensors = []
    first = {record.name: record for record in reversed(manifest.graphs)}  # of a graph in several sizes or precisions
    for record in reversed(first.values()):
        sides = (("in", record.spec.inputs), ("out", record.spec.outputs))
        tensors += [(record.name, side, *_tensor_row(tensor)) for side, specs in sides for tensor in specs]
    title = "Tensors" if len(manifest.sizes) == 1 else f"Tensors, canvas {manifest.sizes[0]}"
    print_table(title, ("graph", "", "tensor", "type", "shape"), tensors)
    print_facts("Provenance", sorted(manifest.provenance.items()))


def _show_vocabulary(path: Path, vocabulary: Vocabulary, as_json: bool) -> None:
    from .tables import print_facts, print_json, print_table

    seen = [bool(flag) for flag in vocabulary.seen]
    if as_json:
        classes = [
            {"name": name, "synonyms": list(synonyms), "seen": flag}
            for name, synonyms, flag in zip(vocabulary.names, vocabulary.synonyms, seen, strict=True)
        ]
        print_json(
            {
                "kind": "vocabulary",
                "path": str(path),
                "model": vocabulary.model,
                "encoder_sha256": vocabulary.encoder_sha256,
                "logit_scale": float(vocabulary.logit_scale),
                "templates": list(vocabulary.templates),
                "embedding_dim": int(vocabulary.embeddings.shape[1]),
                "classes": classes,
            }
        )
        return
    rows = [
        ("model", vocabulary.model),
        ("classes", f"{len(vocabulary.names)}, of them seen in training {sum(seen)}"),
        ("embedding width", vocabulary.embeddings.shape[1]),
        ("templates", len(vocabulary.templates)),
        ("text encoder", vocabulary.encoder_sha256),
    ]
    print_facts(f"Vocabulary {path}", rows)
    classes_rows = [
        (index, name, ", ".join(synonyms), "seen" if flag else "new")
        for index, (name, synonyms, flag) in enumerate(zip(vocabulary.names, vocabulary.synonyms, seen, strict=True))
    ]
    print_table("Classes", ("label", "name", "synonyms", ""), classes_rows)


def _show_graph(path: Path, as_json: bool) -> None:
    from .tables import print_facts, print_json, print_table

    report = _read_graph(path)
    if as_json:
        print_json({"kind": "graph", "path": str(path), **report})
        return
    rows = [(key.replace("_", " "), report[key]) for key in ("opset", "producer", "nodes", "weights")]
    print_facts(f"Graph {path}", [*rows, *sorted(report["metadata"].items())])
    tensors = [
        (side, each["name"], each["dtype"], _shape(each["shape"]))
        for side, key in (("in", "inputs"), ("out", "outputs"))
        for each in report[key]
    ]
    print_table("Tensors", ("", "tensor", "type", "shape"), tensors)
    most = list(report["operators"].items())[:MOST_OPERATORS]
    print_table("Operators", ("operator", "nodes"), most)
    print_table("Weights", ("type", "values"), report["weight_values"].items())


def _read_graph(path: Path) -> dict[str, Any]:
    """What the file says; weights kept beside it are counted, not read."""
    from collections import Counter

    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors have no common base that onnx promises
        raise InputError(f"graph {path}: {' '.join(str(error).split())}", cure="give an ONNX file") from error
    if not model.graph.node:
        raise InputError(f"graph {path}: no nodes in it", cure="give an ONNX file")
    type_name = onnx.TensorProto.DataType.Name
    values: Counter[str] = Counter()
    for weight in model.graph.initializer:
        count = 1
        for length in weight.dims:
            count *= length
        values[type_name(weight.data_type).lower()] += count

    def tensors(infos: Sequence[Any]) -> list[dict[str, Any]]:
        return [
            {
                "name": info.name,
                "dtype": type_name(info.type.tensor_type.elem_type).lower(),
                "shape": [each.dim_param or each.dim_value for each in info.type.tensor_type.shape.dim],
            }
            for info in infos
        ]

    weights = {weight.name for weight in model.graph.initializer}
    return {
        "opset": next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "nodes": len(model.graph.node),
        "weights": len(weights),
        "metadata": {each.key: each.value for each in model.metadata_props},
        "inputs": tensors([each for each in model.graph.input if each.name not in weights]),
        "outputs": tensors(model.graph.output),
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "weight_values": dict(values.most_common()),
    }


def _tensor_row(tensor: TensorSpec) -> tuple[str, str, str]:
    return tensor.name, tensor.dtype, _shape(tensor.shape)


def _shape(shape: Sequence[object]) -> str:
    return " × ".join(map(str, shape))
