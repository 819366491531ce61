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
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .. import __version__
from ..contract import MERGED, GraphRecord, GraphSpec, Size, TensorSpec
from ..errors import BackendError, ExportError, InputError, ParityError
from ..runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ..runtime.bundle import Bundle
from ..runtime.parity import CHAIN_TOLERANCES, deviation
from .merged_spec import MERGED_GRAPHS, RESULTS, merged_prefix, merged_spec

TOLERANCE = 1e-4
"""Relative deviation allowed between the merged graph and its parts in ONNX Runtime in FP32; measured: 0 and 1e-6.

In other precisions that of the chain from FP32 holds (parity.CHAIN_TOLERANCES): ONNX Runtime on a CPU has few kernels
in half precision, computes between casts instead, and leaves out those that meet, which are others once the borders are
gone. Measured on nano in FP16, INT8 and FP8: 3e-3 at most. Two tensors of one shape that are swapped are off by 0.2 to
1 in nano: FP32 tells all of them, the wide bounds of other precisions not all. The wiring goes by name in every one.
"""


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
    model.metadata_props.update(
        {"ebseg.graph": MERGED, "ebseg.precision": precision, "ebseg.size": str(size), "ebseg.version": __version__}
    )
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
    return spec


def write_merged(
    bundle: Bundle, size: Size, precision: str, file: Path, *, threads: int | None = None
) -> dict[str, float]:
    """`merge_graphs`, and hold the result against its parts in ONNX Runtime, on random pixels and words.

    Returns:
        Largest |difference| of each result.

    Raises:
        BundleError, ExportError: as merge_graphs.
        InputError: the file exists, or a graph computes in BF16, which ONNX Runtime cannot do on a CPU.
        ParityError: the merged graph's numbers are not those of its parts; the file is gone again.
    """
    if file.exists():
        raise InputError(f"{file} exists", cure="give another -o")
    computes = [bundle.graph(name, size, precision).compute for name in MERGED_GRAPHS]
    if any(compute is not None and compute.base == "bf16" and not compute.emulated for compute in computes):
        raise InputError(
            f"precision {precision}: ONNX Runtime cannot compute BF16 on a CPU, so a merged graph cannot be checked",
            cure="merge another precision, or use the single graphs (`ebseg build` without --merged)",
        )
    spec = merge_graphs(bundle, size, precision, file)
    try:
        return _compare(bundle, size, precision, file, spec, threads)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _compose(bundle: Bundle, records: Sequence[GraphRecord], spec: GraphSpec) -> ir.Model:
    border: dict[str, ir.Value] = {}
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []
    opset = max(record.opset for record in records)
    versions = []
    for record in records:
        part = ir.load(bundle.file(record.file))
        versions.append(part.ir_version)
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
        opset_imports={"": opset},
        name=MERGED,
    )
    _drop_border_casts(graph)
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


def _compare(
    bundle: Bundle, size: Size, precision: str, file: Path, spec: GraphSpec, threads: int | None
) -> dict[str, float]:
    tensors = _inputs(spec)
    tolerance = TOLERANCE if precision == "fp32" else CHAIN_TOLERANCES.get(precision, 0.25)
    try:
        with OnnxRuntimeBackend(threads=threads) as backend:
            opened = backend.open(file, spec=spec, name=MERGED)
            got = backend.run(opened, dict(tensors))
        for name in MERGED_GRAPHS:
            record = bundle.graph(name, size, precision)
            with OnnxRuntimeBackend(threads=threads) as backend:
                part = backend.open(bundle.file(record.file), spec=record.spec, name=name)
                tensors |= backend.run(part, {each.name: tensors[each.name] for each in record.spec.inputs})
    except BackendError as error:
        raise ExportError(error.message, cure="report it with the versions `ebseg doctor` prints") from error
    found: dict[str, float] = {}
    for result in RESULTS:
        difference = deviation(result, got[result], tensors[result])
        if not difference.relative <= tolerance:
            raise ParityError(
                f"merged graph: {result}: relative deviation {difference.relative:.1e} from its parts exceeds "
                f"{tolerance:.0e} ({precision}; largest |Δ| {difference.largest:.1e})",
                cure="report it with the versions `ebseg doctor` prints; the single graphs are not affected",
            )
        found[result] = difference.largest
    return found


def _inputs(spec: GraphSpec) -> dict[str, np.ndarray]:
    """Random pixels and words: 5 classes and the background, one picture where the batch is dynamic."""
    lengths: Mapping[str, int] = {"batch": 1, "classes": 5, "classes_and_background": 6}
    shapes = {
        tensor.name: [lengths[each] if isinstance(each, str) else each for each in tensor.shape]
        for tensor in spec.inputs
    }
    random = np.random.default_rng(0)
    words = random.normal(size=shapes["text_embeddings"]).astype(np.float32)
    height, width = shapes["image"][2:]
    return {
        "image": random.integers(0, 256, size=shapes["image"], dtype=np.uint8),
        "valid_size": np.full(shapes["valid_size"], [height, width], dtype=np.int32),
        "text_embeddings": words / np.linalg.norm(words, axis=1, keepdims=True),
        "seen": (np.arange(shapes["seen"][0]) % 2).astype(np.float32),
    }
