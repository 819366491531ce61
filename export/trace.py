"""From a torch module to an ONNX graph: traced, folded, named and stripped of this machine's paths."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes import common as ir_passes

from ..errors import ExportError
from .graphs import ExportableGraph
from .rewrites import standard_gelu

OPSET = 18
"""The dynamo exporter's own. GridSample from 20 on falls back to nearest sampling in TensorRT."""

NO_LIMIT = 1 << 40
_SCOPES = "pkg.torch.onnx.name_scopes"
_DROPPED_SCOPES = frozenset({"encoder", "decoder", "weights", "block", "tower"})
"""Attribute names that say nothing about where in the model a node is."""


def trace(graph: ExportableGraph) -> ir.Model:
    """Export one graph, constants folded whatever their size.

    Raises:
        ExportError: the exporter refused it.
    """
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph.module,
                graph.example_inputs(),
                dynamo=True,
                opset_version=OPSET,
                optimize=True,
                verbose=False,
                input_names=[tensor.name for tensor in graph.spec.inputs],
                output_names=[tensor.name for tensor in graph.spec.outputs],
                dynamic_shapes=graph.dynamic_shapes(),
            )
            assert program is not None
            model = program.model
            onnxscript.optimizer.optimize_ir(model, input_size_limit=NO_LIMIT, output_size_limit=NO_LIMIT)
    except Exception as error:  # torch and onnxscript raise many kinds; each means the same to the user
        raise ExportError(
            f"graph {graph.label}: tracing failed: {type(error).__name__}: {_first_line(error)}",
            cure="check the torch and onnxscript versions against pyproject.toml",
        ) from error
    standard_gelu(model)
    _check_opset(model, graph)
    _name_nodes(model)
    _declare_borders(model, graph)
    ir_passes.ClearMetadataAndDocStringPass()(model)
    return model


def _check_opset(model: ir.Model, graph: ExportableGraph) -> None:
    """Standard operators alone, of one opset: a host has no others."""
    domains = {node.domain for node in model.graph.all_nodes()}
    if model.opset_imports.get("") != OPSET or domains - {"", "ai.onnx"}:
        raise ExportError(
            f"graph {graph.label}: opset {dict(model.opset_imports)} with domains {sorted(domains)}, "
            f"wanted opset {OPSET} and standard operators alone",
            cure="install the onnxscript version named in pyproject.toml",
        )
    model.opset_imports.clear()
    model.opset_imports[""] = OPSET


def _name_nodes(model: ir.Model) -> None:
    """Name every node after its place in the model: keep-lists and engine reports are read by people."""
    seen: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['', '']"))
        place = scopes[-2] if len(scopes) > 1 else ""
        parts = [part for part in place.split(".") if part not in _DROPPED_SCOPES]
        name = "/".join([".".join(parts), node.op_type]).lstrip("/")
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def _declare_borders(model: ir.Model, graph: ExportableGraph) -> None:
    """Give inputs and outputs the contract's own shapes, dynamic dimensions by its names."""
    for values, tensors in ((model.graph.inputs, graph.spec.inputs), (model.graph.outputs, graph.spec.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            if value.name != tensor.name:
                raise ExportError(f"graph {graph.label}: border {value.name!r} wanted {tensor.name!r}")
            value.shape = ir.Shape(list(tensor.shape))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "no message"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and logs its steps; ours are reported through `progress`."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
