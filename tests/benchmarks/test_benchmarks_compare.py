"""A side of the comparison answers whatever happens to it: its failure is an error of ours, not a traceback."""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ebseg_deploy.benchmarks.compare import CompareConfig, _serve
from ebseg_deploy.contract import Size
from ebseg_deploy.errors import EbsegError, InputError

CONFIG, SIZE = CompareConfig(bundle=Path("b.ebseg")), Size(height=64, width=64)


def served(body: Callable[..., Any], *questions: str) -> list[Any]:
    """What a side with this body sends; the first answer is that it is ready, or why not."""
    ours, theirs = Pipe()
    side = threading.Thread(target=_serve, args=(theirs, body, CONFIG, SIZE))
    side.start()
    answers = [ours.recv()]
    for question in questions:
        ours.send(question)
        answers.append(ours.recv())
    ours.close()
    side.join(timeout=10)
    assert not side.is_alive()
    return answers


def test_a_side_runs_and_tells_its_memory() -> None:
    ready, (milliseconds, labels), peak = served(lambda config, size: lambda: np.ones((2, 2)), "run", "peak")
    assert ready == "ready"
    assert milliseconds >= 0
    assert labels.sum() == 4
    assert peak > 1 << 20


@pytest.mark.parametrize(
    ("error", "needle"),
    [
        (InputError("no such canvas", cure="choose another"), "no such canvas; choose another"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "torch is not installed; pip install"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines; "),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_a_side_raises_is_its_answer(error: Exception, needle: str) -> None:
    def while_loading(config: CompareConfig, size: Size) -> Callable[[], Any]:
        raise error

    def while_running(config: CompareConfig, size: Size) -> Callable[[], Any]:
        def run() -> Any:
            raise error

        return run

    for answer in (served(while_loading)[-1], served(while_running, "run")[-1]):
        assert isinstance(answer, EbsegError)
        assert needle in str(answer)
        assert "\n" not in str(answer)


@pytest.mark.parametrize("end", [KeyboardInterrupt, EOFError])
def test_an_interrupted_side_ends_in_silence(end: type[BaseException], capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = Pipe()

    def interrupted(config: CompareConfig, size: Size) -> Callable[[], Any]:
        raise end

    _serve(theirs, interrupted, CONFIG, SIZE)
    assert not ours.poll()
    assert capfd.readouterr().err == ""
