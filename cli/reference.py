"""Write the command-line reference from the commands themselves.

python -m ebseg_deploy.cli.reference > docs/cli.md
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from . import ebseg

WIDTH = 100
HEAD = """\
# The command line

Made by `python -m ebseg_deploy.cli.reference > docs/cli.md`; a test compares it with the commands.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 an error (one line, with what to do about
it), 2 wrong usage, 130 interrupted. `--debug`, anywhere on the line, adds the traceback.
"""


def reference() -> str:
    """The whole reference, as Markdown."""
    return "\n".join([HEAD, *_sections(ebseg, "ebseg", None)])


def _sections(command: click.Command, path: str, parent: click.Context | None) -> Iterator[str]:
    # The width is ours and not the terminal's, so that the text is the same everywhere.
    widths = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    context = command.make_context(path.rpartition(" ")[2], [], parent, resilient_parsing=True, **widths)
    yield f"## {path}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            verb = command.get_command(context, name)
            if verb is not None and not verb.hidden:
                yield from _sections(verb, f"{path} {name}", context)


if __name__ == "__main__":
    print(reference(), end="")
