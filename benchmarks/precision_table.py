"""Recipes side by side, as tables for a terminal and for a document."""

from __future__ import annotations

from collections.abc import Iterator

from .precision import GraphRow, PrecisionReport, PrecisionRow

RECIPE_COLUMNS = ("recipe", "size", "labels as FP32", "mIoU", "seen", "new", "harmonic")
GRAPH_COLUMNS = ("recipe", "graph", "size", "of FP32", "latency ratio", "pairs")

MIB = 1 << 20


def title(report: PrecisionReport) -> str:
    """What was measured, on what."""
    pictures = f"; {report.pictures} pictures of {report.dataset}" if report.dataset else ""
    return f"{report.model}, canvas {report.canvas}, ONNX Runtime on {report.machine.cpu}{pictures}"


def recipe_rows(report: PrecisionReport) -> Iterator[tuple[str, ...]]:
    """A row for each bundle: percent, and MiB."""
    for row in report.rows:
        shares = (row.label_agreement, row.miou, row.seen_miou, row.new_miou, row.harmonic_miou)
        yield (_name(row), f"{row.bytes / MIB:.1f}", *(_percent(share) for share in shares))


def graph_rows(report: PrecisionReport) -> Iterator[tuple[str, ...]]:
    """A row for each graph of each bundle but FP32."""
    before = {graph.graph: graph for graph in report.rows[0].graphs}
    for row in report.rows[1:]:
        for graph in row.graphs:
            size = f"{graph.bytes / MIB:.1f}", f"{100 * graph.bytes / before[graph.graph].bytes:.0f} %"
            yield (_name(row), graph.graph, *size, *_ratio(graph))


def markdown(report: PrecisionReport) -> str:
    """Both tables for a document."""
    lines = [f"{title(report)}.", ""]
    for columns, rows in ((RECIPE_COLUMNS, recipe_rows(report)), (GRAPH_COLUMNS, graph_rows(report))):
        lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    lines.append(
        "Sizes in MiB, shares in percent. The latency ratio is FP32's time over the recipe's in ONNX Runtime on this "
        f"CPU, median of {report.repeats} pairs timed in turn: above 1 is faster. FP16, INT8 and FP8 graphs are made "
        "for GPUs and emulated by a CPU; int8-cpu is made for CPUs."
    )
    return "\n".join(lines) + "\n"


def _name(row: PrecisionRow) -> str:
    return f"{row.precision} (emulated)" if row.emulated else row.precision


def _ratio(graph: GraphRow) -> tuple[str, str]:
    if graph.latency_ratio is None:
        return "–", "–"
    return f"{graph.latency_ratio:.2f}", f"{graph.ratio_min:.2f} to {graph.ratio_max:.2f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"
