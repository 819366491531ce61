"""A sensitivity report as a table, for a terminal and for a document."""

from __future__ import annotations

from collections.abc import Sequence

from .sensitivity import Sensitivity, SensitivityReport

COLUMNS = ("graph", "block", "products", "MACs", "labels", "embeddings", "mIoU", "seen", "new")


def title(report: SensitivityReport) -> str:
    """What was measured, and FP32's own figures."""
    known = [
        f"{name} {100 * value:.2f}"
        for name, value in (("mIoU", report.miou), ("seen", report.seen_miou), ("new", report.new_miou))
        if value is not None
    ]
    before = f"; FP32: {', '.join(known)}" if known else ""
    return f"{report.bundle}: {report.precision} in one place, FP32 elsewhere; {report.pictures} pictures{before}"


def costliest_first(report: SensitivityReport) -> list[Sensitivity]:
    """Whole graphs, then blocks, each from the lowest label agreement up."""
    return sorted(report.rows, key=lambda row: (row.block is not None, row.label_agreement))


def cells(row: Sensitivity, report: SensitivityReport) -> Sequence[str]:
    """One row: shares in percent, mIoU as the change in points."""
    changes = (
        _change(row.miou, report.miou),
        _change(row.seen_miou, report.seen_miou),
        _change(row.new_miou, report.new_miou),
    )
    return (
        row.graph,
        row.block or "all of it",
        str(row.products),
        f"{100 * row.macs_share:.1f}",
        f"{100 * row.label_agreement:.2f}",
        f"{row.embedding_cosine:.5f}",
        *changes,
    )


def markdown(report: SensitivityReport) -> str:
    """The table for a document."""
    lines = [title(report), "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(cells(row, report))} |" for row in costliest_first(report)]
    return "\n".join(lines) + "\n"


def _change(value: float | None, before: float | None) -> str:
    return "–" if value is None or before is None else f"{100 * (value - before):+.2f}"
