"""What holds for every verb: lazy imports, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from ebseg_deploy import __version__
from ebseg_deploy.cli import VERBS, EbsegGroup, describe, ebseg
from ebseg_deploy.cli.lazy import LazyGroup, LazyVerb
from ebseg_deploy.errors import EbsegError, InputError

HEAVY = ("numpy", "onnxruntime", "torch", "onnx", "rich", "PIL", "msgspec", "tokenizers")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("words", [["--help"], ["bench", "--help"], ["segment", "--help"], ["inspect", "-h"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = run_python(
        "import sys\n"
        "from ebseg_deploy.cli import ebseg\n"
        f"try: ebseg.main({words!r}, prog_name='ebseg')\n"
        "except SystemExit as end: code = end.code\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules], code)\n"
    )
    assert done.stdout.endswith("loaded: [] 0\n"), done.stdout + done.stderr


def test_help_lists_every_verb_with_its_line() -> None:
    text = CliRunner().invoke(ebseg, ["--help"]).output
    for name in VERBS:
        assert f"\n  {name} " in text


@pytest.mark.parametrize("name", list(VERBS))
def test_every_verb_loads_and_answers_help(name: str) -> None:
    outcome = CliRunner().invoke(ebseg, [name, "--help"])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.startswith(f"Usage: ebseg {name}")


def test_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ebseg_deploy", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"ebseg, version {__version__}\n")


@pytest.mark.parametrize("as_json", [True, False])
def test_a_stdout_that_cannot_show_every_letter(tiny_bundle: Path, as_json: bool) -> None:
    words = ["inspect", str(tiny_bundle), *(["--json"] if as_json else [])]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "ebseg_deploy", *words], capture_output=True, timeout=60, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (0, b"")
    if as_json:
        assert json.loads(done.stdout)["kind"] == "bundle"
    else:
        assert b"\\u03b1" in done.stdout  # the α of "α, β, γ"


def failing_group(error: BaseException) -> click.Group:
    group = EbsegGroup(name="ebseg", lazy_verbs={})
    group.params.append(click.Option(["--debug"], is_flag=True, expose_value=False))

    @group.command()
    def fail() -> None:
        raise error

    return group


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("picture a.png: 0 bytes", cure="give a PNG"), 1, "error: picture a.png: 0 bytes; give a PNG\n"),
        (EbsegError("two\nlines"), 1, "error: two lines\n"),
        (ValueError("odd\nthing"), 1, "error: ValueError: odd thing; this is unexpected: run again with --debug"),
        (FileNotFoundError(2, "No such file or directory", "x"), 1, "error: x: No such file or directory"),
        (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), 1, "pip install 'ebseg-deploy[export]'"),
        (MemoryError(), 1, "error: out of memory; use a smaller picture"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.BadParameter("no"), 2, "Invalid value: no"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error: BaseException, code: int, text: str) -> None:
    outcome = CliRunner().invoke(failing_group(error), ["fail"])
    assert outcome.exit_code == code
    assert text in outcome.stderr
    assert outcome.stdout == ""
    if code == 1:
        assert outcome.stderr.count("\n") == 1
        assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("words", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(words: list[str]) -> None:
    outcome = CliRunner().invoke(failing_group(ValueError("odd")), words)
    assert outcome.exit_code == 1
    assert "Traceback" in outcome.stderr
    assert outcome.stderr.splitlines()[-1].startswith("error: ValueError: odd")


def test_debug_after_two_dashes_is_an_argument() -> None:
    group = EbsegGroup(name="ebseg", lazy_verbs={})

    @group.command()
    @click.argument("word")
    def say(word: str) -> None:
        click.echo(word)

    assert CliRunner().invoke(group, ["say", "--", "--debug"]).stdout == "--debug\n"


def test_what_is_missing_and_ours_is_named_with_its_extra() -> None:
    assert describe(ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")) == (
        "onnxruntime is not installed; pip install 'ebseg-deploy[cpu]'"
    )
    assert "unexpected" in describe(ModuleNotFoundError("No module named 'nonesuch'", name="nonesuch"))


@pytest.mark.parametrize(("word", "hint"), [("segmnt", "did you mean 'segment'?"), ("xyz", "commands are demo, ")])
def test_a_wrong_verb_is_a_usage_error_with_a_hint(word: str, hint: str) -> None:
    outcome = CliRunner().invoke(ebseg, [word])
    assert outcome.exit_code == 2
    assert hint in outcome.stderr


def test_a_verb_module_without_a_command_is_our_bug() -> None:
    group = LazyGroup(name="ebseg", lazy_verbs={"bad": LazyVerb("ebseg_deploy.errors", "")})
    outcome = CliRunner().invoke(group, ["bad"])
    assert isinstance(outcome.exception, AttributeError)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to a child alone")
def test_ctrl_c_ends_with_130_and_no_traceback() -> None:
    code = (
        "import time, click\n"
        "from ebseg_deploy.cli import EbsegGroup\n"
        "group = EbsegGroup(name='ebseg', lazy_verbs={})\n"
        "@group.command()\n"
        "def wait():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "group.main(['wait'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip() == "interrupted"
