"""From an FP32 bundle and pictures to a quantised one: calibrate, insert Q/DQ pairs, lower the rest, check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import onnx_ir as ir

from ..contract import ADAB_DECODER, CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER, GraphName, GraphRecord, Size
from ..errors import CalibrationError, InputError
from ..export.precision.derive import DeriveConfig, check_output, check_source, derive_bundle
from ..export.precision.formulas import name_formulas
from ..export.precision.lower import Lowering, Saturated
from ..export.precision.read import read_graph
from ..export.precision.recipes import Recipe
from ..export.precision.source_outputs import SourceOutputs
from ..runtime.bundle import Bundle
from .calibrate import CalibrationConfig, ChooseTensors, calibrate
from .feeds import graph_hash
from .observers import MaxObserver, Observer
from .quantize import Quantisation, activations_to_calibrate, insert_qdq
from .quantize_check import GraphCosines, check_cosines, measure_cosines
from .quantize_cpu import quantise_for_cpu
from .ranges import CALIBRATION_NAME, Range, Ranges, write_ranges
from .survey import SurveyedPictures

Progress = Callable[[str, int, int], None]
"""Called as progress(step, done, total); each step counts anew."""

Place = tuple[GraphName, Size | None]
"""Which graph of a bundle."""


@dataclass(frozen=True, kw_only=True)
class QuantiseConfig:
    """How a bundle is quantised."""

    observer: Observer = field(default_factory=MaxObserver)
    cache: Path | None = None
    """Folder where what calibration finds is kept; nothing is kept without."""
    derive: DeriveConfig = field(default_factory=DeriveConfig)


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantisedBundle:
    """What came of it."""

    bundle: Bundle
    quantisations: Mapping[Place, Quantisation]
    cosines: tuple[GraphCosines, ...]
    saturated: Mapping[Place, tuple[Saturated, ...]]
    """Constants that the base type cannot hold, of the graphs that have any."""
    ranges: Ranges | None
    """What the activations were quantised with; None for a recipe that needs none."""

    @property
    def encoder_share(self) -> float:
        """Share of the image encoders' multiply-adds that is quantised, 0 to 1."""
        encoders = [self.quantisations[place] for place in self.quantisations if place[0] != ADAB_DECODER]
        total = sum(each.macs for each in encoders)
        return sum(each.quantised_macs for each in encoders) / total if total else 0.0


def quantise_bundle(
    bundle: Bundle,
    output: Path,
    recipe: Recipe,
    config: QuantiseConfig,
    *,
    pictures: SurveyedPictures | None = None,
    ranges: Ranges | None = None,
    progress: Progress = lambda step, done, total: None,
    notice: Callable[[str], None] = lambda line: None,
) -> QuantisedBundle:
    """Write a bundle by a recipe that quantises.

    Args:
        bundle: FP32 graphs, as exported.
        output: the folder to make; it appears only when every graph in it was checked.
        recipe: one of export.precision.recipes.
        pictures: to calibrate on, for a recipe that needs them and when no ranges are given. The decoder is calibrated
            on what the encoders give as they were quantised.
        ranges: of an earlier calibration of this bundle; graphs it lacks are calibrated on the pictures.
        progress: see Progress.
        notice: called with a line worth telling, as that calibration was found in the cache.

    Raises:
        InputError: neither pictures nor ranges for a recipe that needs them, a bundle that is not FP32, or an output
            that exists.
        BundleError: the bundle carries no references.
        CalibrationError: ranges of another graph, or activations that are not finite.
        ExportError: a graph could not be made, or the folder could not be written.
        ParityError: a graph's outputs point elsewhere than FP32's; see quantize_check.
    """
    check_source(bundle)
    if recipe.needs_pictures and pictures is None and ranges is None:
        raise InputError(f"recipe {recipe.name}: no pictures to calibrate on", cure="give --images, or --ranges")
    check_output(output, overwrite=config.derive.overwrite)
    source = SourceOutputs(bundle, threads=config.derive.threads)
    work = _Work(source, recipe, config, pictures, ranges, progress, notice)
    work.check_ranges()
    work.calibrate_encoders()
    made = derive_bundle(
        bundle,
        output,
        recipe,
        config.derive,
        transform=work.transform,
        source=source,
        lowered=work.note_lowering,
        progress=progress,
    )
    return QuantisedBundle(
        bundle=made,
        quantisations=work.quantisations,
        cosines=tuple(work.cosines),
        saturated=work.saturated,
        ranges=work.ranges,
    )


def tensors_to_observe(recipe: Recipe) -> ChooseTensors:
    """For CalibrationConfig.tensors: the activations whose ranges a recipe needs."""

    def choose(bundle: Bundle, record: GraphRecord) -> Sequence[str]:
        model = read_graph(bundle, record)
        name_formulas(model)  # keep-lists speak of them
        return activations_to_calibrate(model, recipe.graphs[record.name])

    return choose


def ranges_for(ranges: Ranges, bundle: Bundle, record: GraphRecord) -> Mapping[str, Range]:
    """The ranges of one of a bundle's graphs.

    Raises:
        CalibrationError: there are none, or they were measured on another graph.
    """
    found = ranges.graph(record.name, record.size)
    if found.sha256 != graph_hash(bundle.file(record.file)):
        raise CalibrationError(
            f"ranges of {record.name}: measured on another graph than this bundle's",
            cure="calibrate this bundle: give --images instead of --ranges",
        )
    return found.ranges


class _Work:
    """What the steps of one run share."""

    def __init__(
        self,
        source: SourceOutputs,
        recipe: Recipe,
        config: QuantiseConfig,
        pictures: SurveyedPictures | None,
        ranges: Ranges | None,
        progress: Progress,
        notice: Callable[[str], None],
    ) -> None:
        self._bundle = source.bundle
        self._recipe = recipe
        self._config = config
        self._pictures = pictures
        self._progress = progress
        self._notice = notice
        self._source = source
        self.ranges = ranges
        self.quantisations: dict[Place, Quantisation] = {}
        self.cosines: list[GraphCosines] = []
        self.saturated: dict[Place, tuple[Saturated, ...]] = {}

    def check_ranges(self) -> None:
        """Before any work: ranges that are given are of these graphs, and for what they lack there are pictures."""
        for record in self._bundle.manifest.graphs:
            if not self._needs_ranges(record.name):
                continue
            if self.ranges is not None and self._has(record.name, record.size):
                ranges_for(self.ranges, self._bundle, record)
            elif self._pictures is None:
                where = "" if record.size is None else f" for canvas {record.size}"
                raise CalibrationError(
                    f"ranges: none of graph {record.name}{where}", cure="give --images besides --ranges"
                )

    def calibrate_encoders(self) -> None:
        """Find the ranges that are not given, of all graphs but the decoder."""
        missing = [
            graph
            for graph in (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER)
            if self._needs_ranges(graph) and not all(self._has(graph, size) for size in self._bundle.sizes)
        ]
        if missing:
            self._calibrate(tuple(missing), encoders=None)

    def transform(self, record: GraphRecord, model: ir.Model, folder: Path) -> float | None:
        """Quantise one graph; see export.precision.derive.Transform."""
        recipe = self._recipe.graphs[record.name]
        if recipe.quantised is None:
            return None
        if recipe.dynamic:
            done = quantise_for_cpu(model, recipe)
        else:
            if record.name == ADAB_DECODER and not self._has(ADAB_DECODER, record.size):
                self._calibrate((ADAB_DECODER,), encoders=self._encoders_in(folder))
            assert self.ranges is not None
            done = insert_qdq(model, recipe, ranges_for(self.ranges, self._bundle, record))
            write_ranges(folder / CALIBRATION_NAME, self.ranges)  # anew with each graph: the decoder's come late
        self.quantisations[record.name, record.size] = done
        found = measure_cosines(self._source, record, model, folder)
        self.cosines.append(found)
        if record.name != ADAB_DECODER:  # a mask pixel within rounding of 0 moves whole embeddings: judged by labels
            check_cosines(found)
        return done.share

    def note_lowering(self, record: GraphRecord, done: Lowering) -> None:
        """Keep what lowering did to a graph that is worth telling."""
        if done.saturated:
            self.saturated[record.name, record.size] = done.saturated

    def _needs_ranges(self, graph: GraphName) -> bool:
        recipe = self._recipe.graphs[graph]
        return recipe.quantised is not None and not recipe.dynamic

    def _has(self, graph: GraphName, size: Size | None) -> bool:
        return self.ranges is not None and any((each.graph, each.size) == (graph, size) for each in self.ranges.graphs)

    def _calibrate(self, graphs: tuple[GraphName, ...], encoders: Mapping[tuple[GraphName, Size], Path] | None) -> None:
        assert self._pictures is not None, "check_ranges has refused that"
        config = CalibrationConfig(
            observer=self._config.observer,
            graphs=graphs,
            tensors=tensors_to_observe(self._recipe),
            encoders=encoders,
            cache=self._config.cache,
            threads=self._config.derive.threads,
        )
        found = calibrate(
            self._bundle,
            self._pictures,
            config,
            progress=lambda graph, done, total: self._progress(f"calibrating {graph}", done, total),
            notice=self._notice,
        )
        if self.ranges is not None:  # its pictures were calibrated on too, and accuracy is not to be measured on them
            pictures = {each.sha256: each for each in (*self.ranges.pictures, *found.pictures)}
            found = msgspec.structs.replace(
                found, pictures=tuple(pictures.values()), graphs=(*self.ranges.graphs, *found.graphs)
            )
        self.ranges = found

    def _encoders_in(self, folder: Path) -> dict[tuple[GraphName, Size], Path]:
        """The encoders as they were just quantised: what the decoder will stand behind."""
        return {
            (record.name, record.size): folder / "graphs" / self._recipe.name / Path(record.file).name
            for record in self._bundle.manifest.graphs
            if record.name in (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER) and record.size is not None
        }
