"""One graph of four: picture and words in, mask logits and class probabilities out.

For hosts that want one file. Nodes and values keep their names behind the name of the graph they come from
("sam_image_encoder/blocks.0.attn/MatMul"), so keep-lists and reports still find them; the borders between the graphs
become inner values. Weights stay in the bundle's own files, which the merged graph refers to.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from .. import __version__
from ..contract import MERGED, GraphRecord, GraphSpec, Size, TensorSpec
from ..errors import ExportError, InputError
from ..runtime.bundle import Bundle
from .merge_check import WIRE_TOLERANCE, hold_against_parts, result_tolerance
from .merged_spec import MERGED_GRAPHS, merged_prefix, merged_spec


def merge_graphs(bundle: Bundle, size: Size, precision: str, file: Path) -> GraphSpec:
    """Write the merged graph of one canvas.

    Args:
        bundle: has the graphs.
        size: one of its canvases.
        precision: one of its precisions.
        file: the .onnx to write. The bundle's .weights files that it refers to lie beside it afterwards: they are hard
            links where the disk can do that, else copies, and untouched where they are there already.

    Returns:
        Its border.

    Raises:
        BundleError: the bundle has no such graphs.
        ExportError: two graphs do not fit together, or the file cannot be written.
    """
    records = [bundle.graph(name, size, precision) for name in MERGED_GRAPHS]
    spec = merged_spec(records)
    model = _compose(bundle, records, spec)
    _drop_border_casts(model.graph)
    model.metadata_props.update(
        {"ebseg.graph": MERGED, "ebseg.precision": precision, "ebseg.size": str(size), "ebseg.version": __version__}
    )
    _save(bundle, records, model, file)
    return spec


def write_merged(
    bundle: Bundle, size: Size, precision: str, file: Path, *, threads: int | None = None
) -> dict[str, float]:
    """`merge_graphs`, and hold the result against its parts in ONNX Runtime: wire by wire, and as it is written.

    Returns:
        Largest |difference| of each result.

    Raises:
        BundleError, ExportError: as merge_graphs.
        InputError: the file exists, or a graph computes in BF16, which ONNX Runtime cannot do on a CPU.
        ParityError: the merged graph's numbers are not those of its parts; the file is gone again.
    """
    if file.exists():
        raise InputError(f"{file} exists", cure="give another -o")
    records = [bundle.graph(name, size, precision) for name in MERGED_GRAPHS]
    if any(each.compute is not None and each.compute.base == "bf16" and not each.compute.emulated for each in records):
        raise InputError(
            f"precision {precision}: ONNX Runtime cannot compute BF16 on a CPU, so a merged graph cannot be checked",
            cure="merge another precision, or use the single graphs (`ebseg build` without --merged)",
        )
    if precision != "fp32":  # the check below tells every wire of FP32
        _check_wires(bundle, records, file, threads)
    spec = merge_graphs(bundle, size, precision, file)
    try:
        allowed = result_tolerance(precision)
        return hold_against_parts(bundle, records, file, spec, tolerance=allowed, optimise=True, threads=threads)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _check_wires(bundle: Bundle, records: Sequence[GraphRecord], file: Path, threads: int | None) -> None:
    """Hold the graph against its parts before casts are left out, with every tensor between them as an output."""
    made = tuple(tensor for each in records for tensor in each.spec.outputs)
    spec = GraphSpec(inputs=merged_spec(records).inputs, outputs=made)
    wired = file.with_name(f".{file.name}.{os.getpid()}.wires.onnx")
    try:
        _save(bundle, records, _compose(bundle, records, spec), wired)
        hold_against_parts(bundle, records, wired, spec, tolerance=WIRE_TOLERANCE, optimise=False, threads=threads)
    finally:
        with contextlib.suppress(OSError):
            wired.unlink(missing_ok=True)


def _save(bundle: Bundle, records: Sequence[GraphRecord], model: ir.Model, file: Path) -> None:
    """Write a merged graph, with the weights that it refers to beside it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for record in records:
            if record.weights is not None:
                _link(bundle.file(record.weights), file.parent / Path(record.weights).name)
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        try:
            ir.save(model, partial)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(
            f"merged graph {file}: cannot be written: {error.strerror or error}",
            cure="free some space, or write to another folder",
        ) from error


def _compose(bundle: Bundle, records: Sequence[GraphRecord], spec: GraphSpec) -> ir.Model:
    border: dict[str, ir.Value] = {}
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []
    opsets: dict[str, int] = {}
    versions = []
    for record in records:
        part = ir.load(bundle.file(record.file))
        versions.append(part.ir_version)
        opsets |= part.opset_imports  # of ONNX Runtime's own operators too
        _rename(part.graph, merged_prefix(record.name))
        for value, tensor in zip(part.graph.inputs, record.spec.inputs, strict=True):
            if tensor.name in border:
                _check_fit(record, tensor, value, border[tensor.name])
                value.replace_all_uses_with(border[tensor.name])
            else:
                value.name = tensor.name
                border[tensor.name] = value
        for value, tensor in zip(part.graph.outputs, record.spec.outputs, strict=True):
            value.name = tensor.name
            border[tensor.name] = value
        found = list(part.graph)
        weights = list(part.graph.initializers.values())
        part.graph.outputs.clear()
        part.graph.inputs.clear()
        part.graph.initializers.clear()
        part.graph.remove(found)
        nodes += found
        initializers += weights
    graph = ir.Graph(
        [border[tensor.name] for tensor in spec.inputs],
        [border[tensor.name] for tensor in spec.outputs],
        nodes=nodes,
        initializers=initializers,
        opset_imports={**opsets, "": max(record.opset for record in records)},
        name=MERGED,
    )
    model = ir.Model(graph, ir_version=max(versions))
    model.producer_name, model.producer_version = "ebseg-deploy", __version__
    return model


def _rename(graph: ir.Graph, prefix: str) -> None:
    """Put the prefix before the names of nodes, values and weights."""
    for i, node in enumerate(graph.all_nodes()):
        node.name = f"{prefix}{node.name or f'{node.op_type}_{i}'}"
        for value in node.outputs:
            value.name = f"{prefix}{value.name}"
    for value in list(graph.initializers.values()):
        value.name = f"{prefix}{value.name}"  # the graph's table follows


def _check_fit(record: GraphRecord, tensor: TensorSpec, taken: ir.Value, given: ir.Value) -> None:
    if taken.dtype != given.dtype or [str(d) for d in taken.shape or ()] != [str(d) for d in given.shape or ()]:
        raise ExportError(
            f"merged graph: {record.name} takes {tensor.name} as {taken.dtype} {taken.shape}, "
            f"and is given {given.dtype} {given.shape}",
            cure="export the bundle again: its graphs do not belong together",
        )


def _drop_border_casts(graph: ir.Graph) -> None:
    """A half-precision value that was widened for the border and is narrowed behind it: exact, so left out."""
    for node in list(graph):
        source = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
        if source is None or source.op_type != "Cast" or source.inputs[0] is None:
            continue
        inner = source.inputs[0]
        wide, narrow = source.attributes["to"].as_int(), node.attributes["to"].as_int()
        if wide != ir.DataType.FLOAT or inner.dtype != ir.DataType(narrow):
            continue
        if inner.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) or node.outputs[0].is_graph_output():
            continue
        node.outputs[0].replace_all_uses_with(inner)
        graph.remove(node, safe=True)
        if not source.outputs[0].uses() and not source.outputs[0].is_graph_output():
            graph.remove(source, safe=True)


def _link(source: Path, target: Path) -> None:
    """Make `target` the file `source` without a second copy, where the file system can."""
    if target.exists() and (target.samefile(source) or filecmp.cmp(source, target, shallow=False)):
        return
    if target.exists():
        raise InputError(f"{target} exists and is another file", cure="give a folder of its own with -o")
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
