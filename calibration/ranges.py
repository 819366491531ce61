"""Ranges of activations: what calibration finds and quantisation uses, as readable JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from ..contract import GraphName, Record, Size
from ..errors import CalibrationError
from ..runtime.atomic_write import write_atomically

RANGES_SCHEMA_VERSION = 1

CALIBRATION_NAME = "calibration.json"
"""The ranges file that a quantised bundle was made with, in its folder."""


class Range(Record, frozen=True, kw_only=True):
    """What of an activation's values is to be represented; the rest is clipped."""

    low: float
    high: float
    clipped: float = 0.0
    """Share of the calibration's values outside, 0 to 1."""
    node: str = ""
    """The node that computes it: its place in the model. "" for an input of the graph."""

    @property
    def amax(self) -> float:
        """The larger of |low| and |high|: what a symmetric scale is made of. 0 if every value was 0."""
        return max(abs(self.low), abs(self.high))


class GraphRanges(Record, frozen=True, kw_only=True):
    """The ranges in one graph."""

    graph: GraphName
    size: Size | None
    sha256: str
    """Of the graph that was observed, weights included; see feeds.graph_hash."""
    fed_by: dict[GraphName, str] = msgspec.field(default_factory=dict)
    """Of the decoder: the encoders whose outputs it was given, by the same kind of hash."""
    ranges: dict[str, Range]
    """Tensor name -> range, in the graph's order."""


class PictureRecord(Record, frozen=True, kw_only=True):
    """A picture that was calibrated on: enough to find it again in another set."""

    name: str
    sha256: str
    """Of its pixels as RGB, not of its file."""
    look: str
    """look.look_of: 256 bits that hardly change when the picture is resized or compressed."""


class Ranges(Record, frozen=True, kw_only=True):
    """A ranges file."""

    schema_version: int = RANGES_SCHEMA_VERSION
    model: str
    precision: str
    """Of the graphs that were observed."""
    observer: str
    """As `observers.observer_named` takes it."""
    pictures_from: str
    pictures: tuple[PictureRecord, ...]
    graphs: tuple[GraphRanges, ...]

    def of(self, graph: GraphName, size: Size | None) -> Mapping[str, Range]:
        """The ranges of one graph; raises as `graph` does."""
        return self.graph(graph, size).ranges

    def graph(self, graph: GraphName, size: Size | None) -> GraphRanges:
        """The entry of one graph.

        Raises:
            CalibrationError: it was not calibrated.
        """
        for each in self.graphs:
            if (each.graph, each.size) == (graph, size):
                return each
        where = "" if size is None else f" for canvas {size}"
        raise CalibrationError(f"ranges: none of graph {graph}{where}", cure="calibrate it with `ebseg calibrate`")


def write_ranges(path: Path, ranges: Ranges) -> None:
    """Write a ranges file, whole or not at all.

    Raises:
        OSError: the folder is missing or not writable.
    """
    write_atomically(path, msgspec.json.format(msgspec.json.encode(ranges), indent=1) + b"\n")


def read_ranges(path: Path) -> Ranges:
    """Read a ranges file.

    Raises:
        CalibrationError: it is missing, no JSON, of another schema version, or a field is wrong.
    """
    cure = "make it again with `ebseg calibrate`"
    try:
        ranges = msgspec.json.decode(path.read_bytes(), type=Ranges)
    except OSError as error:
        raise CalibrationError(f"ranges {path}: {error.strerror}", cure="give the path of a ranges file") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CalibrationError(f"ranges {path}: {error}", cure=cure) from error
    if ranges.schema_version != RANGES_SCHEMA_VERSION:
        raise CalibrationError(
            f"ranges {path}: schema version {ranges.schema_version}, this release reads {RANGES_SCHEMA_VERSION}",
            cure=cure,
        )
    for graph in ranges.graphs:
        for name, each in graph.ranges.items():
            if not each.low <= each.high:
                raise CalibrationError(f"ranges {path}: {graph.graph}: {name}: {each.low} to {each.high}", cure=cure)
    return ranges
