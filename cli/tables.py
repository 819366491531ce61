"""Results on stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH = 140
"""Columns of a table that does not go to a terminal; rich would take 80 and fold."""


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; a column that holds only numbers is set to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    cells = [[str(value) for value in row] for row in rows]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = bool(cells) and all(_is_number(row[i]) for row in cells)
        table.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(escape(cell) for cell in row))
    _print(title, table)


def print_facts(title: str, facts: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line, on stdout."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    for name, value in facts:
        table.add_row(escape(name), escape(str(value)))
    _print(title, table)
    print()


def print_json(value: Any) -> None:
    """JSON on stdout, indented; NaN, which JSON does not know, is a bug of ours.

    Letters stand as they are where stdout can show them all, else as JSON's own escapes.
    """
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, indent=2, ensure_ascii=not unicode, allow_nan=False))


def print_json_line(value: Any) -> None:
    """JSON on one line of stdout, sent off at once: whoever reads a pipe has it while the next is computed."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=not unicode, allow_nan=False), flush=True)


def bytes_text(count: float) -> str:
    """`count` bytes for people: 1.2 GiB, 340 MiB, 12 KiB, 7 B."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            value = count / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def _print(title: str, table: Table) -> None:
    from rich.console import Console
    from rich.markup import escape

    if sys.stdout.isatty():
        console = Console(highlight=False)
        console.print(f"[bold]{escape(title)}[/bold]")
        console.print(table)
        return
    console = Console(highlight=False, width=PIPE_WIDTH)
    with console.capture() as capture:
        console.print(table)
    print(title)
    for line in capture.get().splitlines():
        print(line.rstrip())


def _is_number(text: str) -> bool:
    text = text.strip().rstrip("%×").replace(",", "").strip()
    try:
        float(text)
    except ValueError:
        return text in ("", "-")
    return True
