"""Progress on stderr, and only when stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], None]
"""Called as report(done, total), as often as one likes."""

StepReport = Callable[[str, int, int], None]
"""Called as report(step, done, total)."""


@contextmanager
def progress_bar(description: str) -> Iterator[Report]:
    """A bar while the block runs; yields what moves it.

    Example:
        with progress_bar("encoding names") as report:
            build_vocabulary(names, progress=report)
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=_to_terminal()) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def step_progress(title: str, *, remaining: bool = False) -> Iterator[StepReport]:
    """A bar whose text names the step that is running: for work of few, long and different steps.

    Args:
        title: stands before the step.
        remaining: show a guess of the time left; for totals that grow evenly enough.
    """
    if not sys.stderr.isatty():
        yield lambda step, done, total: None
        return

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
    columns += [TaskProgressColumn() if remaining else MofNCompleteColumn(), TimeElapsedColumn()]
    columns += [TextColumn("left"), TimeRemainingColumn()] if remaining else []
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=_to_terminal()) as bar:
        task = bar.add_task(title, total=None)
        yield lambda step, done, total: bar.update(task, description=f"{title}: {step}", completed=done, total=total)


def _to_terminal() -> bool:
    """Whether results may pass through the bar's console, which keeps them above the bar.

    Only on a terminal: rich would send what is printed meanwhile to stderr, and a pipe on stdout would stay empty.
    """
    return sys.stdout.isatty()
