"""From an FP32 bundle to one of another precision: graph by graph, each run and held against its FP32 form.

Weights of one graph at a time are in memory. The new bundle is a bundle like any other: the same border, tokenizer,
background and references, so that vocabularies, hosts and `ebseg verify` work with it as they did. What its own graphs
give for the reference pictures is kept too, for the sentinel of a GPU.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import onnx_ir as ir

from ... import __version__
from ...contract import GRAPH_NAMES, MANIFEST_NAME, ComputeRecord, GraphName, GraphRecord, manifest_bytes
from ...errors import InputError
from ...runtime.bundle import DERIVED_FROM_SEAL, Bundle
from ..bundle_files import Progress, file_records, time_of_writing
from ..output_folder import whole_folder
from ..weights import WeightsFile
from .check import DerivedCheck
from .emulate import emulate
from .formulas import name_formulas
from .lower import Lowering, lower
from .operators import computes
from .own_references import OwnReferences
from .positions import add_positions
from .read import read_graph
from .recipes import Keep, Recipe
from .source_outputs import SourceOutputs

Transform = Callable[[GraphRecord, ir.Model, Path], float | None]
"""transform(record, model, folder) changes an FP32 graph before it is lowered: it inserts Q/DQ pairs. `record` is the
FP32 graph's; `folder` is the bundle in the making, in which the graphs that come before are already. It returns the
share of the graph's multiply-adds that it quantised, or None."""


@dataclass(frozen=True, kw_only=True)
class DeriveConfig:
    """How a bundle is derived."""

    overwrite: bool = False
    emulate: bool = False
    """Write graphs that compute in FP32 and round as the recipe would: to measure on a CPU; see emulate.py."""
    threads: int | None = None
    """For the check in ONNX Runtime."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Added to the FP32 bundle's own."""


def derive_bundle(
    bundle: Bundle,
    output: str | os.PathLike[str],
    recipe: Recipe,
    config: DeriveConfig,
    *,
    transform: Transform | None = None,
    source: SourceOutputs | None = None,
    lowered: Callable[[GraphRecord, Lowering], None] = lambda record, done: None,
    progress: Progress = lambda step, done, total: None,
) -> Bundle:
    """Write a bundle whose graphs compute as a recipe says.

    Args:
        bundle: FP32 graphs, as exported.
        output: the folder to make; it appears only when every graph in it was checked.
        recipe: types and keep-lists.
        transform: what inserts Q/DQ pairs; needed by recipes that quantise.
        source: what the bundle's graphs give, if somebody has run them already.
        lowered: called with what lowering did to each graph.

    Raises:
        InputError: the bundle is not FP32, or the output exists.
        BundleError: the bundle carries no references.
        ExportError: a graph could not be made, or the folder could not be written.
        ParityError: a graph's numbers are further from FP32's than its precision explains.
    """
    check_source(bundle)
    assert transform is not None or not recipe.needs_pictures, f"recipe {recipe.name} needs a transform"
    output = Path(output)
    check_output(output, overwrite=config.overwrite)
    source = SourceOutputs(bundle, threads=config.threads) if source is None else source
    records = sorted(bundle.manifest.graphs, key=lambda record: GRAPH_NAMES.index(record.name))
    with whole_folder(output, overwrite=config.overwrite, needed_bytes=_needed_bytes(bundle, recipe)) as folder:
        _copy_all_but_graphs(bundle, folder)
        place = folder / "graphs" / recipe.name
        place.mkdir(parents=True)
        check = DerivedCheck(source, folder)
        own = OwnReferences(bundle, folder, recipe.name, threads=config.threads)
        derived = []
        with contextlib.ExitStack() as stack:
            weights: dict[GraphName, WeightsFile] = {}
            for number, record in enumerate(records):
                label = f"{record.name} {record.size}" if record.size else record.name
                if record.name not in weights:
                    file = WeightsFile(place / f"{record.name}.weights", root=folder)
                    weights[record.name] = stack.enter_context(file)
                progress(f"converting {label}", 2 * number, 2 * len(records) + 1)
                made, done = _derive_graph(bundle, record, recipe, folder, weights[record.name], config, transform)
                lowered(made, done)
                progress(f"checking {label}", 2 * number + 1, 2 * len(records) + 1)
                derived.append(msgspec.structs.replace(made, parity=check(record, made)))
                own.add(made)
        references = (*bundle.manifest.references, *own.write())
        progress("hashing", 2 * len(records), 2 * len(records) + 1)
        manifest = msgspec.structs.replace(
            bundle.manifest,
            graphs=tuple(derived),
            files=file_records(folder),
            references=references,
            provenance={**bundle.manifest.provenance, **_provenance(bundle, recipe, config)},
        )
        (folder / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
        progress("done", 2 * len(records) + 1, 2 * len(records) + 1)
    return Bundle.open(output, check_hashes=False)


def check_source(bundle: Bundle) -> None:
    """Whether a bundle can be derived from: FP32 graphs and nothing else.

    Raises:
        InputError: it is lowered or quantised already.
    """
    other = sorted({record.precision for record in bundle.manifest.graphs if record.precision != "fp32"})
    if other or any(record.compute is not None for record in bundle.manifest.graphs):
        raise InputError(
            f"bundle {bundle.source}: its graphs are {', '.join(other)} already", cure="give the FP32 bundle"
        )


def check_output(output: Path, *, overwrite: bool) -> None:
    """Whether a bundle may be written there: to be asked before long work too.

    Raises:
        InputError: something is there.
    """
    if os.path.exists(output) and not overwrite:  # unlike Path.exists, False for a name no disk can hold
        raise InputError(f"output {output} exists", cure="give --overwrite, or another -o")


def check_keeps(bundle: Bundle, keeps: Sequence[Keep]) -> None:
    """Whether each keep fits some node of the bundle's graphs.

    Raises:
        InputError: one fits none.
    """
    names: set[str] = set()
    for record in bundle.manifest.graphs:
        model = read_graph(bundle, record)
        name_formulas(model)
        names.update(node.name or "" for node in model.graph if computes(node))
    for keep in keeps:
        if not any(keep.matches(name) for name in names):
            raise InputError(
                f"--keep {keep.pattern}: no node of {bundle.source} has such a name",
                cure="see the names with `ebseg inspect` on a graph; `*` stands for any characters",
            )


def _derive_graph(
    bundle: Bundle,
    record: GraphRecord,
    recipe: Recipe,
    folder: Path,
    weights: WeightsFile,
    config: DeriveConfig,
    transform: Transform | None,
) -> tuple[GraphRecord, Lowering]:
    """Write one graph; its weights go to the file of its name."""
    graph_recipe = recipe.graphs[record.name]
    model = read_graph(bundle, record)
    name_formulas(model)
    if graph_recipe.base != "fp32" and not graph_recipe.attention:
        add_positions(model)
    macs_share = None if transform is None else transform(record, model, folder)
    done = lower(model, graph_recipe.base, graph_recipe.keep)
    weights.adopt(model)
    if config.emulate:
        emulate(model)
    model.producer_name, model.producer_version = "ebseg-deploy", __version__
    model.metadata_props["ebseg.precision"] = recipe.name
    name = Path(record.file).name
    ir.save(model, folder / "graphs" / recipe.name / name)
    made = msgspec.structs.replace(
        record,
        precision=recipe.name,
        file=f"graphs/{recipe.name}/{name}",
        weights=weights.name if weights.used else None,
        opset=model.opset_imports[""],
        parity={},
        compute=ComputeRecord(
            base=graph_recipe.base,
            quantised=graph_recipe.quantised,
            dynamic=graph_recipe.dynamic,
            macs_share=None if macs_share is None else round(macs_share, 4),
            kept=done.kept,
            casts=done.casts,
            emulated=config.emulate,
        ),
    )
    return made, done


def _copy_all_but_graphs(bundle: Bundle, folder: Path) -> None:
    graphs = {file for record in bundle.manifest.graphs for file in (record.file, record.weights)}
    for relative in bundle.manifest.files:
        if relative not in graphs:
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(relative), folder / relative)


def _needed_bytes(bundle: Bundle, recipe: Recipe) -> int:
    """Disk space: half of the weights of graphs that are lowered, and everything else once."""
    halved = {
        record.weights
        for record in bundle.manifest.graphs
        if recipe.graphs[record.name].base != "fp32" or recipe.graphs[record.name].quantised
    }
    sizes = bundle.manifest.files
    return sum(sizes[name].bytes // (2 if name in halved else 1) for name in sizes) + (64 << 20)


def _provenance(bundle: Bundle, recipe: Recipe, config: DeriveConfig) -> dict[str, str]:
    return {
        "recipe": recipe.name,
        "derived": time_of_writing(),
        "derived_from": bundle.source.name,
        DERIVED_FROM_SEAL: bundle.manifest.seal,
        **config.provenance,
    }
