"""Progress is for people: on stderr, on a terminal, and never in the way of results."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import click
from ebseg_deploy.cli.progress import progress_bar
with progress_bar("counting") as report:
    for i in range(3):
        report(i, 3)
        (print, click.echo)[i % 2](f"result {i}")
"""
RESULTS = "result 0\nresult 1\nresult 2\n"


def test_nothing_but_results_without_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (RESULTS, "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_results_reach_a_pipe_while_the_bar_is_on_the_terminal() -> None:
    import pty

    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "TERM": "xterm"},
        )
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.stdout == RESULTS
    assert "counting" in shown
    assert "result" not in shown
