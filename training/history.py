"""What a run leaves for the eye: history.csv, history.json and a plot of the curves."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError

CSV_NAME = "history.csv"
JSON_NAME = "history.json"
PLOT_NAME = "history.png"


class History:
    """Rows of figures by step. Rows after the step a run resumes from are dropped."""

    def __init__(self, folder: Path, *, resume_step: int = 0) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = [row for row in read_history(folder) if row["step"] <= resume_step]

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Append a row and rewrite the files, each atomically."""
        self.rows.append({"step": float(step), **{name: float(value) for name, value in figures.items()}})
        self.write()

    def write(self) -> None:
        """Write both files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        temporary = self.folder / f".{CSV_NAME}"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)
        os.replace(temporary, self.folder / CSV_NAME)
        temporary = self.folder / f".{JSON_NAME}"
        temporary.write_text(json.dumps(self.rows))
        os.replace(temporary, self.folder / JSON_NAME)


def read_history(folder: Path) -> list[dict[str, float]]:
    """The rows of a run; none when it has not begun."""
    path = folder / JSON_NAME
    if not path.is_file():
        return []
    rows: list[dict[str, float]] = json.loads(path.read_text())
    return rows


def plot_history(folder: Path, path: Path | None = None) -> Path:
    """Draw every figure of a run against the step, one panel each.

    Raises:
        InputError: the run has no history.
    """
    rows = read_history(folder)
    if not rows:
        raise InputError(f"{folder}: no {JSON_NAME} to plot", cure="give the folder of a run that has begun")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "step"]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names):
        panel = figure.add_subplot(lines, columns, place + 1)
        points = [(row["step"], row[name]) for row in rows if name in row]
        panel.plot([step for step, _ in points], [value for _, value in points], linewidth=1)
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    target = folder / PLOT_NAME if path is None else path
    figure.savefig(target, dpi=110)
    return target
