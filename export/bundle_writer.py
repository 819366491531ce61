"""From a model to a bundle: trace, save, check, describe, and only then give it its name."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from safetensors.numpy import save

from .. import __version__
from ..contract import (
    BACKGROUND_NAME,
    MANIFEST_NAME,
    OPEN_VOCAB_HEAD,
    SCHEMA_VERSION,
    SIZED_GRAPHS,
    TEXT_ENCODER,
    TOKENIZER_NAME,
    VILD_TEMPLATES,
    BundleManifest,
    GraphName,
    GraphRecord,
    ReferenceRecord,
    Size,
    TextRecord,
    manifest_bytes,
)
from ..model.ebseg import EBSeg
from ..model.text import text_identity
from ..model.training_names import training_names
from ..runtime.bundle import Bundle
from ..runtime.tokenizer import ClipTokenizer
from .bundle_files import Progress, file_records, time_of_writing
from .check import check_graph, sampled
from .graphs import ExportableGraph, exportable_graphs
from .output_folder import whole_folder
from .reference_picture import PROMPTS, reference_inputs, reference_text
from .tokenizer import write_tokenizer
from .trace import OPSET, trace
from .weights import WeightsFile

PRECISION = "fp32"
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What a bundle holds."""

    sizes: tuple[Size, ...]
    batch: int = 1
    """Pictures per run."""
    dynamic_batch: bool = False
    """Whether a run may have fewer, down to one: costs some shape arithmetic in every run."""
    overwrite: bool = False
    threads: int | None = None
    """For the check in ONNX Runtime."""


def export_bundle(
    model: EBSeg,
    output: str | os.PathLike[str],
    config: ExportConfig,
    *,
    provenance: Mapping[str, str],
    progress: Progress = lambda step, done, total: None,
) -> Bundle:
    """Write a bundle of FP32 graphs, each held against torch.

    Args:
        model: with its weights.
        output: the folder to make; it appears only when everything in it was checked.
        provenance: where the weights came from; versions and time are added.

    Raises:
        ExportError: a graph could not be traced, or the folder could not be written.
        ParityError: a graph's numbers differ from torch's.
    """
    output = Path(output)
    weight_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    with whole_folder(output, overwrite=config.overwrite, needed_bytes=int(1.3 * weight_bytes) + (64 << 20)) as folder:
        graphs = exportable_graphs(model, config.sizes, "batch" if config.dynamic_batch else config.batch)
        steps = _Steps(progress, total=2 * len(graphs) + 1)
        records = _write_graphs(graphs, folder, steps)
        (folder / BACKGROUND_NAME).parent.mkdir()
        background = model.ov_classifier.bg_embed.detach().float().numpy()
        (folder / BACKGROUND_NAME).write_bytes(save({"background": background}))
        write_tokenizer(folder / TOKENIZER_NAME)
        records, references = _check_graphs(model, graphs, records, folder, config, steps)
        steps.begin("hashing")
        manifest = BundleManifest(
            schema_version=SCHEMA_VERSION,
            model=model.spec,
            sizes=config.sizes,
            batch=config.batch,
            graphs=tuple(records),
            text=TextRecord(
                encoder_sha256=text_identity(model.ov_classifier),
                templates=VILD_TEMPLATES,
                background=BACKGROUND_NAME,
                tokenizer=TOKENIZER_NAME,
                training_names=training_names(model.config),
            ),
            files=file_records(folder),
            provenance={**provenance, **_versions()},
            references=tuple(references),
        )
        (folder / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
        steps.end()
    return Bundle.open(output, check_hashes=False)


class _Steps:
    """Counts steps for the progress report."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._done = -1
        self._total = total

    def begin(self, step: str) -> None:
        self._done += 1
        self._progress(step, self._done, self._total)

    def end(self) -> None:
        self._progress("done", self._total, self._total)


def _write_graphs(graphs: list[ExportableGraph], folder: Path, steps: _Steps) -> list[GraphRecord]:
    """Trace and save every graph; those of one name share a weights file."""
    place = folder / "graphs" / PRECISION
    place.mkdir(parents=True)
    records = []
    with contextlib.ExitStack() as stack:
        weights: dict[GraphName, WeightsFile] = {}
        for graph in graphs:
            steps.begin(f"tracing {graph.label}")
            if graph.name not in weights:
                weights[graph.name] = stack.enter_context(WeightsFile(place / f"{graph.name}.weights", root=folder))
            traced = trace(graph)
            weights[graph.name].adopt(traced)
            traced.producer_name, traced.producer_version = "ebseg-deploy", __version__
            traced.graph.name = graph.name
            traced.metadata_props.update(_metadata(graph))
            name = f"{graph.name}.{graph.size}.onnx" if graph.size else f"{graph.name}.onnx"
            ir.save(traced, place / name)
            records.append(
                GraphRecord(
                    name=graph.name,
                    precision=PRECISION,
                    size=graph.size,
                    file=f"graphs/{PRECISION}/{name}",
                    weights=weights[graph.name].name if weights[graph.name].used else None,
                    spec=graph.spec,
                    opset=OPSET,
                    parity={},
                )
            )
    return records


def _metadata(graph: ExportableGraph) -> dict[str, str]:
    """What a graph says of itself when it is met without its bundle."""
    properties = {"graph": graph.name, "precision": PRECISION, "batch": str(graph.batch), "version": __version__}
    if graph.size:
        properties["size"] = str(graph.size)
    return {f"ebseg.{key}": value for key, value in properties.items()}


def _check_graphs(
    model: EBSeg,
    graphs: list[ExportableGraph],
    records: list[GraphRecord],
    folder: Path,
    config: ExportConfig,
    steps: _Steps,
) -> tuple[list[GraphRecord], list[ReferenceRecord]]:
    """Check all graphs on the reference picture, and keep what torch gave as reference."""
    tokens = ClipTokenizer.load(folder / TOKENIZER_NAME).encode(list(PROMPTS))
    shared: dict[str, Array] = {"tokens": tokens, **reference_text(model.spec)}
    # Two pictures show that a dynamic batch is one. The bundle keeps the first: engines may be built for no more.
    pictures = min(config.batch, 2) if config.dynamic_batch else config.batch
    by_size: dict[Size, dict[str, Array]] = {
        size: {**shared, **reference_inputs(size, pictures)} for size in config.sizes
    }
    outcomes: dict[Size, dict[str, Array]] = {size: dict(tensors) for size, tensors in by_size.items()}
    checked = []
    for graph, record in zip(graphs, records, strict=True):
        steps.begin(f"checking {graph.label}")
        # The graphs that serve every size are checked on the first one, and their outcome is kept with every reference.
        tensors = by_size[graph.size or config.sizes[0]]
        outcome = check_graph(graph, record, folder, tensors, threads=config.threads)
        names = [tensor.name for tensor in graph.spec.outputs]
        if graph.name in SIZED_GRAPHS or graph.name == TEXT_ENCODER:
            for size in config.sizes if graph.size is None else (graph.size,):
                by_size[size].update(outcome.expected)
                outcomes[size].update(sampled(outcome.expected, names))
        else:
            assert graph.name == OPEN_VOCAB_HEAD
            for size in config.sizes:
                outcomes[size].update(sampled(_head_of(graph, by_size[size]), names))
        parity = {each.name: each.largest for each in outcome.deviations}
        checked.append(msgspec.structs.replace(record, parity=parity))
    references = []
    (folder / "references").mkdir()
    for size in config.sizes:
        file = f"references/{size}.safetensors"
        (folder / file).write_bytes(save(_first_picture(graphs, outcomes[size])))
        references.append(ReferenceRecord(size=size, file=file))
    return checked, references


def _first_picture(graphs: list[ExportableGraph], tensors: Mapping[str, Array]) -> dict[str, Array]:
    """What of a reference belongs to its first picture, where the batch is dynamic; else all of it."""
    borders = [tensor for graph in graphs for tensor in (*graph.spec.inputs, *graph.spec.outputs)]
    dynamic = {tensor.name for tensor in borders if tensor.shape[0] == "batch"}
    return {
        name: np.ascontiguousarray(array[:1]) if name.removeprefix("expected.") in dynamic else array
        for name, array in tensors.items()
    }


def _head_of(graph: ExportableGraph, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The head's output for one size's embeddings, in torch."""
    import torch

    with torch.no_grad():
        output = graph.module(*(torch.from_numpy(tensors[tensor.name]) for tensor in graph.spec.inputs))
    return {graph.spec.outputs[0].name: np.asarray(output)}


def _versions() -> dict[str, str]:
    """Versions and time; SOURCE_DATE_EPOCH sets the time for reproducible bundles."""
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "open_clip_torch", "segment-anything")
    installed = {name: _installed(name) for name in packages}
    return {
        "created": time_of_writing(),
        "ebseg-deploy": __version__,
        "python": platform.python_version(),
        **{name: version for name, version in installed.items() if version is not None},
    }


def _installed(name: str) -> str | None:
    """Version of an installed distribution; None if it is not (ONNX Runtime comes under two names)."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
