"""`ebseg inspect RANGES.json`: what calibration found."""

from __future__ import annotations

from pathlib import Path

WIDEST = 12
"""Activations of a graph that the table lists; JSON lists all."""


def show_ranges(path: Path, as_json: bool) -> None:
    """Facts of a ranges file, and the widest activations of each graph.

    Raises:
        CalibrationError: the file cannot be read, or is no ranges file.
    """
    import msgspec

    from ..calibration.ranges import read_ranges
    from .tables import print_facts, print_json, print_table

    ranges = read_ranges(path)
    if as_json:
        print_json({"kind": "ranges", "path": str(path), **msgspec.to_builtins(ranges)})
        return
    facts = [
        ("model", f"{ranges.model}, {ranges.precision}"),
        ("observer", ranges.observer),
        ("pictures", f"{len(ranges.pictures)} of {ranges.pictures_from}"),
    ]
    print_facts(f"Ranges {path}", facts)
    for graph in ranges.graphs:
        widest = sorted(graph.ranges.items(), key=lambda item: -item[1].amax)
        print_table(
            f"{graph.graph} {graph.size or ''}: the widest {min(WIDEST, len(widest))} of {len(widest)} activations",
            ("tensor", "low", "high", "clipped", "comes from"),
            [
                (name, f"{found.low:.4g}", f"{found.high:.4g}", f"{100 * found.clipped:.3f} %", found.node or "input")
                for name, found in widest[:WIDEST]
            ],
        )
