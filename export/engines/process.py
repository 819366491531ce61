"""Run one building process and make an error of whatever becomes of it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from ...errors import ExportError
from .job import Advanced, Answer, BuildJob, Built, Refused, decode_answer, encode

Watch = Callable[[float, str], None]
"""Called as watch(fraction, phase)."""

TAIL_LINES = 3
END_SECONDS = 5.0
"""How long a builder that was told to end may take."""


def run_job(job: BuildJob, *, label: str, log_name: Path, watch: Watch = lambda fraction, phase: None) -> Built:
    """Build one graph in a process of its own.

    Args:
        job: what to build.
        label: what to call the graph in errors.
        log_name: where the log will be found in the end, for errors.
        watch: told of progress.

    Raises:
        ExportError: the builder refused the graph, or its process died; with the graph and the end of the log.
    """
    log = Path(job.log_file)
    command = [sys.executable, "-m", "ebseg_deploy.export.engines.builder"]
    with log.open("ab") as stderr:
        # A session of its own: Ctrl-C reaches this process, which then ends that one.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
        )
    try:
        answer = _converse(process, encode(job), watch)
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    if isinstance(answer, Built) and code == 0:
        return answer
    if isinstance(answer, Refused):
        raise ExportError(f"engine {label}: {answer.message}{_ending(log)}", cure=f"{answer.cure} ({log_name})")
    raise ExportError(
        f"engine {label}: the builder {_cause(code)}{_ending(log)}",
        cure=f"see {log_name}; on memory, give a smaller --workspace or smaller ranges",
    )


def _converse(process: subprocess.Popen[bytes], job: bytes, watch: Watch) -> Answer | None:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it died before it read; its exit code says how
        process.stdin.write(job)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    with process.stdout:
        last: Answer | None = None
        for line in process.stdout:
            try:
                answer = decode_answer(line)
            except msgspec.DecodeError:
                continue  # the last line of a process that was killed while it wrote
            if isinstance(answer, Advanced):
                watch(answer.fraction, answer.phase)
            else:
                last = answer
        return last


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _cause(code: int) -> str:
    if code >= 0:
        return f"died with exit code {code}" if code else "ended without an answer"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"died of {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _ending(log: Path) -> str:
    """The errors a log ends with, or else its last lines, for one line of text."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return ""
    errors = [line for line in lines if line.startswith(("[ERROR]", "[INTERNAL_ERROR]"))]
    tail = (errors or lines)[-TAIL_LINES:]
    return f"; its log ends: {' | '.join(line[:300] for line in tail)}" if tail else ""
