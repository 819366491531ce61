"""A click group whose verbs are imported when they are used, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

import click


class LazyVerb(NamedTuple):
    """Where a verb lives, and what the group's help says of it without importing it."""

    module: str
    """Dotted name of a module that has `command`, a click command."""
    short_help: str


class LazyGroup(click.Group):
    """A group over `lazy_verbs`, in the order given. Verbs added with `add_command` follow them."""

    def __init__(self, *args: Any, lazy_verbs: Mapping[str, LazyVerb], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy_verbs = dict(lazy_verbs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy_verbs, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = self.lazy_verbs.get(cmd_name)
        if verb is None:
            return super().get_command(ctx, cmd_name)
        command = import_module(verb.module).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{verb.module}.command is a {type(command).__name__}, not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            close = get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"commands are {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, verb.short_help) for name, verb in self.lazy_verbs.items()]
        for name in super().list_commands(ctx):
            command = super().get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(formatter.width)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
