"""The building process: one graph in, one plan out. Started by export.engines.process.

    python -m ebseg_deploy.export.engines.builder < job.json > answers.jsonl

A process of its own, because a builder that crashes takes its process with it, because its memory goes back to the
system, and because it can be ended at any time.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import msgspec

from .job import Advanced, Answer, BuildJob, Built, Refused, encode
from .progress import PhaseTree
from .standalone import BuildRefusedError, build_plan

Say = Callable[[Answer], bool]
"""Sends an answer; False when nobody listens any more."""

SECONDS_BETWEEN_ANSWERS = 0.1


class _Reporter:
    """Tells the parent how far the builder is, and the builder to stop when the parent is gone."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._tree = PhaseTree()
        self._said = 0.0
        self._wanted = True

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self._tree.start(phase, parent, steps)

    def step(self, phase: str, step: int) -> bool:
        self._tree.step(phase, step)
        if time.monotonic() - self._said > SECONDS_BETWEEN_ANSWERS:
            self._said = time.monotonic()
            self._wanted = self._wanted and self._say(Advanced(fraction=self._tree.fraction, phase=phase))
        return self._wanted

    def finish(self, phase: str) -> None:
        self._tree.finish(phase)


@contextlib.contextmanager
def _channel(log: TextIO) -> Iterator[Say]:
    """Answers go to the real standard output; what the builder prints by itself joins the log."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)

    def say(answer: Answer) -> bool:
        try:
            out.write(encode(answer))
        except OSError:
            return False
        return True

    yield say
    out.close()


def main() -> None:
    """Read a job, build it, answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=BuildJob)
    with Path(job.log_file).open("a", encoding="utf-8", errors="replace") as log, _channel(log) as say:
        try:
            outcome = build_plan(importlib.import_module(job.module), msgspec.to_builtins(job), log, _Reporter(say))
            answer: Answer = msgspec.convert(outcome, Built)
        except BuildRefusedError as error:
            answer = Refused(message=str(error), cure=error.cure)
        log.flush()
        say(answer)


if __name__ == "__main__":
    main()
