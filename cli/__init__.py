"""The command `ebseg`: one thin file per verb, each parse → config → one call → print.

What holds for every verb stands here. Results go to stdout, progress and errors to stderr. Exit codes: 0 done,
1 an error of ours on one line (a traceback with `--debug` alone), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

import click

from .. import __version__
from ..errors import EbsegError
from .lazy import LazyGroup, LazyVerb

VERBS = {
    "demo": LazyVerb("ebseg_deploy.cli.demo", "See a photo go through a full-size model, from weights to label map."),
    "export": LazyVerb("ebseg_deploy.cli.export", "Turn a checkpoint into a bundle of ONNX graphs."),
    "calibrate": LazyVerb("ebseg_deploy.cli.calibrate", "Find the ranges of a bundle's activations on pictures."),
    "quantize": LazyVerb("ebseg_deploy.cli.quantize", "Make a bundle of another precision: FP16, BF16, INT8, FP8."),
    "sensitivity": LazyVerb("ebseg_deploy.cli.sensitivity", "Say what INT8 costs, block by block."),
    "merge": LazyVerb("ebseg_deploy.cli.merge", "Make one ONNX graph of a bundle's graphs, for hosts that want one."),
    "build": LazyVerb("ebseg_deploy.cli.build", "Build TensorRT engines from a bundle's graphs."),
    "vocab": LazyVerb("ebseg_deploy.cli.vocab", "Build, change and list vocabularies."),
    "segment": LazyVerb("ebseg_deploy.cli.segment", "Label the pixels of pictures with the words of a vocabulary."),
    "compare": LazyVerb("ebseg_deploy.cli.compare", "Say how far two bundles agree on pictures."),
    "inspect": LazyVerb("ebseg_deploy.cli.inspect", "Show what is in a bundle, a vocabulary, a graph or an engine."),
    "verify": LazyVerb("ebseg_deploy.cli.verify", "Check a bundle's hashes and its graphs' numbers."),
    "doctor": LazyVerb("ebseg_deploy.cli.doctor", "Say what this machine can run, and what to install for the rest."),
    "bench": LazyVerb("ebseg_deploy.cli.bench", "Measure a bundle: latency, memory, accuracy, comparison."),
    "train": LazyVerb("ebseg_deploy.cli.train", "Train EBSeg-nano on emoji scenes."),
}

EXTRAS = {
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "open_clip": "export",
    "segment_anything": "export",
    "torch": "export",
    "torchvision": "export",
    "matplotlib": "train",
    "resvg_py": "train",
    "scipy": "train",
    "onnxruntime": "cpu",
}
"""Module that may be missing -> the extra that brings it."""


class EbsegGroup(LazyGroup):
    """The root group: turns what a verb raises into one line and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line.

        `--debug` is taken out here, wherever it stands, so that "run again with --debug" means: append it.
        """
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        given = list(sys.argv[1:] if args is None else args)
        options = given[: given.index("--")] if "--" in given else given
        debug = "--debug" in options
        words = [word for word in options if word != "--debug"] + given[len(options) :]
        try:
            outcome = super().main(words, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            sys.exit(130)
        except Exception as error:
            _fail(error, debug=debug)
        sys.exit(outcome if isinstance(outcome, int) else 0)


def _fail(error: Exception, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    click.echo(f"error: {describe(error)}", err=True)
    sys.exit(1)


def describe(error: BaseException) -> str:
    """`error` on one line, with what to do about it."""
    if isinstance(error, EbsegError):
        return " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package in EXTRAS:
            return f"{package} is not installed; pip install 'ebseg-deploy[{EXTRAS[package]}]'"
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller picture or canvas, fewer classes, or a machine with more memory"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; run again with --debug for the traceback"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{text}; this is unexpected: run again with --debug for the traceback"


@click.group(
    cls=EbsegGroup,
    lazy_verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback on errors; may stand anywhere.")
@click.version_option(__version__, prog_name="ebseg")
def ebseg() -> None:
    """EBSeg on devices: from a checkpoint to a bundle, from a photo and a list of words to a label map."""


def main() -> NoReturn:
    """Entry point of the `ebseg` command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe of another encoding, or a file name that is no text, is no reason to stop.
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    ebseg.main(prog_name="ebseg")
    raise AssertionError("click's standalone mode always exits")
